"""The registry: what is installed, from metadata alone, and loading by name."""

import pytest
from helpers import forget_installed
from helpers_cli import call, distribution
from hypothesis import given
from hypothesis import strategies as st

import altcore
from altcore import BadInput
from altcore.errors import nearest
from altcore.formats import BlockFormat, get_format, get_scalar_format
from altcore.formats.lookup import format_named
from altcore.hooks import make_plugin
from altcore.registry import (
    HOOK_KINDS,
    KINDS,
    Entry,
    entries,
    family_of,
    find,
    group_of,
    installed,
    left_out,
)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder on the path, for distributions."""
    monkeypatch.syspath_prepend(str(tmp_path))
    forget_installed()
    yield tmp_path
    forget_installed()


def lay(site, name, points, **more):
    distribution(site, name, points, **more)
    forget_installed()


# ------------------------------------------------------------------------------- listing


def test_listing_imports_no_plugin(site):
    """A module that cannot be imported is listed like any other."""
    lay(site, "acme-x", {"diagnostic": {"x": "acme_registry_nowhere:X"}})
    (found,) = [e for e in entries() if e.name == "x"]
    assert found == Entry(
        "x", "diagnostic", "acme-x", "1.0", "acme-x for a test", "acme_registry_nowhere:X"
    )
    assert found.origin == "acme-x 1.0"


def test_every_kind_has_a_group():
    """altcore.<kind>s, and hooks belong to three kinds."""
    assert [group_of(k) for k in KINDS] == [f"altcore.{k}s" for k in KINDS]
    assert set(HOOK_KINDS) <= set(KINDS)
    assert {e.kind for e in entries()} == set(KINDS)


def test_entries_are_sorted_by_kind_and_name():
    """So that lists look the same on every machine."""
    found = [(KINDS.index(e.kind), e.name, e.distribution) for e in entries()]
    assert found == sorted(found)


def test_other_groups_are_not_ours(site):
    """Only groups of ours count, whatever else a distribution offers."""
    lay(site, "acme-x", {"format": {"X": "acme_x:X"}, "thing": {"Y": "acme_x:Y"}})
    text = (site / "acme_x-1.0.dist-info/entry_points.txt").read_text()
    more = "[console_scripts]\nz = acme_x:z\n[altcore.formats.more]\nW = acme_x:W\n"
    (site / "acme_x-1.0.dist-info/entry_points.txt").write_text(more + text)
    forget_installed()
    assert {e.name for e in entries() if e.distribution == "acme-x"} == {"X"}


def test_the_first_of_two_versions_on_the_path_counts(site, tmp_path_factory, monkeypatch):
    """As for imports: a checkout in front of an installed version hides it."""
    lay(site, "acme-x", {"format": {"X": "acme_x:X", "OLD": "acme_x:X"}}, version="1.0")
    front = tmp_path_factory.mktemp("front")
    monkeypatch.syspath_prepend(str(front))
    lay(front, "Acme_X", {"format": {"X": "acme_x:X"}}, version="2.0")
    found = [e for e in entries() if e.value == "acme_x:X"]
    assert [(e.name, e.version) for e in found] == [("X", "2.0")]


def test_metadata_of_older_tools_is_read(site):
    """An editable install by setuptools has PKG-INFO instead of METADATA."""
    info = site / "acme_old.egg-info"
    info.mkdir()
    (info / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: acme-old\nVersion: 3\n\nText\n")
    (info / "entry_points.txt").write_text("[altcore.formats]\nX = acme_old:X\n")
    forget_installed()
    (found,) = [e for e in entries() if e.name == "X"]
    assert found.origin == "acme-old 3"


# ------------------------------------------------------------------------------- finding


def test_find_offers_the_nearest():
    """Letter case aside, and only of the kinds that were asked for."""
    with pytest.raises(BadInput, match=r"unknown plugin 'ULP-Stat' \(did you mean ulp-stats\?\)"):
        find("ULP-Stat", HOOK_KINDS)
    said = r"^unknown workload 'adagrad': installed are gpt, resnet18-cifar$"
    with pytest.raises(BadInput, match=said):
        find("adagrad", ("workload",))


@pytest.mark.parametrize(
    ("name", "kinds", "says"),
    [
        ("gpt", HOOK_KINDS, "'gpt' is a workload, not a plugin: train takes it by --workload gpt"),
        ("adamw", HOOK_KINDS, "is an optimizer, not a plugin: .* --optimizer adamw"),
        ("E4M3", HOOK_KINDS, "is a format, not a plugin: .* --format E4M3"),
        ("E5M9", ("workload",), "is a format, not a workload: .* --format E5M9"),
        ("gpt", ("optimizer",), "is a workload, not an optimizer: .* --workload gpt"),
        ("ulp-stats", ("reporter",), "is a diagnostic, not a reporter: .* --plugin ulp-stats"),
        ("E20M20", HOOK_KINDS, "unknown plugin 'E20M20'"),
    ],
)
def test_find_says_of_what_kind_another_thing_is(name, kinds, says):
    """And which flag takes it."""
    with pytest.raises(BadInput, match=says):
        find(name, kinds)


def test_a_family_that_refuses_offers_the_nearest():
    """Once, whatever the family itself says."""
    with pytest.raises(BadInput, match=r"E4M33 would have .* \(did you mean E4M3\?\)$"):
        get_format("E4M33")
    with pytest.raises(BadInput, match="did you mean MXFP4") as caught:
        get_format("MXFP5")
    assert str(caught.value).count("did you mean") == 1


def test_find_says_what_to_install_where_nothing_is(monkeypatch):
    """The packages of the kinds that were asked for."""
    from altcore import registry

    monkeypatch.setattr(registry, "entries", tuple)
    with pytest.raises(
        BadInput, match=r"altcore-optimizers \(in a clone .*\./plugins/optimizers\)$"
    ):
        find("adamw", ("optimizer",))


@given(st.text(max_size=20), st.lists(st.text(max_size=20), max_size=5))
def test_nearest_offers_what_is_known_or_nothing(name, known):
    """Whatever was typed."""
    offered = nearest(name, known)
    assert offered == "" or offered in known


def test_the_object_may_lie_below_others(site):
    """module:a.b, and extras in brackets, as entry points may be written."""
    text = "class Box:\n    from altcore import table_format\n    X = table_format('X', [0, 1])\n"
    lay(site, "acme-x", {"format": {"X": "acme_below:Box.X [extra]"}}, acme_below=text)
    assert get_format("X").values == (0.0, 1.0)


@pytest.mark.parametrize("name", ["none", "FORMAT"])
def test_a_reserved_name_is_refused(site, name):
    """They mean something in every configuration and recipe."""
    text = f"from altcore import table_format\nX = table_format({name!r}, [0, 1])\n"
    lay(site, "acme-x", {"format": {name: "acme_reserved:X"}}, acme_reserved=text)
    (entry,) = [e for e in entries() if e.name == name]
    with pytest.raises(BadInput, match=rf"format {name} \(acme-x 1.0\): the name is reserved"):
        entry.load()


@pytest.mark.parametrize(("kind", "name"), [("diagnostic", "gpt"), ("optimizer", "gpt")])
def test_a_plugin_named_like_a_workload_is_refused(site, kind, name):
    """Settings are named after their owner; the workload itself can be used."""
    lay(site, "acme-x", {kind: {name: "acme_x:X"}})
    with pytest.raises(BadInput, match=rf"{kind} gpt \(acme-x 1.0\) has the name of the workload"):
        find(name, (kind,))
    assert find(name, ("workload",)).distribution == "altcore-workloads"


def test_a_misspelt_group_is_a_problem_of_its_distribution(site):
    """What it offers in other groups counts."""
    lay(site, "acme-x", {"format": {"X": "acme_x:X"}, "diagnostic.": {"y": "acme_x:Y"}})
    (problem,) = [p for p in installed().problems if str(site) in p.path]
    assert problem.path == str(site / "acme_x-1.0.dist-info/entry_points.txt")
    assert (
        problem.text == "there is no group altcore.diagnostic.s (did you mean altcore.diagnostics?)"
    )
    assert [e.name for e in entries() if e.distribution == "acme-x"] == ["X"]


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("[altcore.diagnostics\ny = x:Y\n", "line 1, '[altcore.diagnostics', has no ] at its end"),
        ("[a]\nb = c\n[altcore.formats\n", "line 3, '[altcore.formats', has no ] at its end"),
        ("y = x:Y\n", "line 1, 'y = x:Y', belongs to no group"),
        ("[alt_core.diagnostics]\ny = x:Y\n", "alt_core.diagnostics (did you mean altcore.diag"),
        ("[altcor.formats]\ny = x:Y\n", "altcor.formats (did you mean altcore.formats?)"),
        ("[Altcore.Reporters]\ny = x:Y\n", "Altcore.Reporters (did you mean altcore.reporters?)"),
        ("[altcore.zzz]\ny = x:Y\n", "there is no group altcore.zzz"),
    ],
)
def test_a_group_that_cannot_be_meant_is_named(site, lines, says):
    """Its plugins would be missing without a word."""
    lay(site, "acme-x", {})
    file = site / "acme_x-1.0.dist-info/entry_points.txt"
    file.write_text(lines)
    forget_installed()
    (problem,) = [p for p in installed().problems if p.path == str(file)]
    assert says in problem.text
    assert str(problem) in left_out(again=True)


@pytest.mark.parametrize(
    "lines", ["", "# x\n[altair.formats]\ny = x\n", "[altcore_sweeps]\ny = x\n"]
)
def test_a_group_of_another_project_is_its_own(site, lines):
    """It only sounds like altcore's."""
    lay(site, "acme-x", {})
    (site / "acme_x-1.0.dist-info/entry_points.txt").write_text(lines)
    forget_installed()
    assert not [p for p in installed().problems if str(site) in p.path]


def test_a_name_that_one_distribution_gives_twice_is_its_own_mistake(site):
    """Nobody is told to uninstall it."""
    lay(site, "acme-x", {})
    file = site / "acme_x-1.0.dist-info/entry_points.txt"
    file.write_text("[altcore.diagnostics]\nd1 = m:X\nd1 = m:Y\n")
    forget_installed()
    with pytest.raises(BadInput) as caught:
        find("d1", HOOK_KINDS)
    assert str(caught.value) == (
        "'d1' is named 2 times by acme-x 1.0, as m:X and m:Y: its entry_points.txt may name it once"
    )


def test_a_broken_family_spoils_no_other(site):
    """It cannot answer; its error is told if no other family does."""
    lay(site, "acme-x", {"format": {"E*": "acme_family:make"}}, acme_family="raise OSError\n")
    assert get_format("E9M3").name == "E9M3"
    with pytest.raises(BadInput, match=r"format E\* \(acme-x 1.0\) cannot be loaded: OSError"):
        get_format("EX")


def test_an_error_that_cannot_be_written_is_told_all_the_same(site, capsys):
    """When a plugin is imported, when it is asked and when it is made."""
    mute = "class Mute(Exception):\n    def __str__(self): raise ValueError\n"
    asks = f"{mute}def make(name): raise Mute\n"
    made = (
        f"{mute}from attrs import define\n@define(eq=False)\nclass Made:\n"
        "    def __attrs_post_init__(self): raise Mute\n"
    )
    lay(site, "acme-a", {"diagnostic": {"imports": "acme_mute:X"}}, acme_mute=f"{mute}raise Mute\n")
    lay(site, "acme-b", {"format": {"Q*": "acme_asks:make"}}, acme_asks=asks)
    lay(site, "acme-c", {"diagnostic": {"made": "acme_mute_made:Made"}}, acme_mute_made=made)
    says = "Mute: its __str__ raises ValueError"
    with pytest.raises(BadInput, match=rf"imports \(acme-a 1.0\) cannot be loaded: {says}"):
        find("imports", HOOK_KINDS).load()
    with pytest.raises(BadInput, match=rf"Q\* \(acme-b 1.0\) failed on 'Q1': {says}"):
        get_format("Q1")
    with pytest.raises(BadInput, match=f"made: it cannot be made: {says}"):
        make_plugin(find("made", HOOK_KINDS).load(), {}, "made")
    checked = call(capsys, "plugins", "check")
    assert f"cannot be loaded: {says}" in checked.out


def test_two_without_a_name_are_two(site):
    """Their folders name them."""
    for name in ("acme_one", "acme_two"):
        (site / f"{name}-1.5.dist-info").mkdir()
        (site / f"{name}-1.5.dist-info/entry_points.txt").write_text(
            f"[altcore.formats]\n{name} = x:y"
        )
    forget_installed()
    assert {e.origin for e in entries() if e.name.startswith("acme")} == {
        "acme_one 1.5",
        "acme_two 1.5",
    }


# ------------------------------------------------------------------------------- formats


def test_an_exact_name_comes_before_a_family():
    """E4M3 is an entry of its own, and E*M* would answer to it as well."""
    assert get_format("E4M3").max == 448.0
    assert get_format("E4M3") is get_format("E4M3")
    assert family_of("E9M3").name == "E*M*"
    assert family_of("nothing") is None


def test_get_format_takes_a_format():
    """So that settings may hold either."""
    mine = altcore.table_format("MINE", [0, 1])
    assert get_format(mine) is mine


def test_a_block_format_is_a_format(site):
    """As an entry, from a function, from a family, and as itself."""
    mine = BlockFormat("MINE", altcore.get_format("E2M1"), 8)
    assert get_format(mine) is mine
    text = (
        "from altcore import get_format\nfrom altcore.plugin import BlockFormat\n"
        "def make(name): return BlockFormat(name, get_format('E2M1'), 8)\n"
        "ONE = make('ONE')\n"
    )
    points = {"ONE": "acme_blocks:ONE", "TWO": "acme_blocks:make", "ACME*": "acme_blocks:make"}
    lay(site, "acme-blocks", {"format": points}, acme_blocks=text)
    for name in ("ONE", "TWO", "ACME3"):
        assert isinstance(get_format(name), BlockFormat)
        assert (get_format(name).name, get_format(name).block) == (name, 8)


def test_a_scalar_format_is_none_of_blocks():
    """For those who need one of single numbers: the message names the one that was asked for."""
    assert get_scalar_format("E4M3") is get_format("E4M3")
    mine = altcore.table_format("MINE", [0, 1])
    assert get_scalar_format(mine) is mine
    for name in ("MXFP4", get_format("MXFP4")):
        with pytest.raises(BadInput, match=r"MXFP4.*in blocks.*single numbers"):
            get_scalar_format(name)
    with pytest.raises(BadInput, match="did you mean E4M3"):
        get_scalar_format("e4m3")


@pytest.mark.parametrize("name", [None, 3, True, ["E3M4"], b"E3M4"])
def test_a_format_is_given_by_its_name(name):
    """And by nothing else."""
    with pytest.raises(BadInput, match="given by its name"):
        get_format(name)


@given(st.text(max_size=12))
def test_any_text_is_a_format_or_bad_input(name):
    """Families are asked with whatever was typed; a format has the name by which it was asked."""
    try:
        found = get_format(name)
    except BadInput:
        return
    finally:
        format_named.cache_clear()
    assert found.name == name


def test_an_entry_may_be_a_function(site):
    """It is called with the name, once it is asked for."""
    text = "from altcore import table_format\ndef make(name): return table_format(name, [0, 1])\n"
    lay(site, "acme-made", {"format": {"MADE": "acme_made:make"}}, acme_made=text)
    assert get_format("MADE").name == "MADE"


def test_a_failure_is_not_remembered(site):
    """What was mended in the same process works."""
    module = site / "acme_mended.py"
    lay(site, "acme-mended", {"format": {"X": "acme_mended:X"}}, acme_mended="raise OSError\n")
    with pytest.raises(BadInput, match=r"format X \(acme-mended 1.0\) cannot be loaded: OSError"):
        get_format("X")
    module.write_text("from altcore import table_format\nX = table_format('X', [0, 1])\n# mended\n")
    forget_installed()
    assert get_format("X").bits == 1
