"""Loading, checking and ordering the plugins that a run lists."""

import json

import pytest
from attrs import define, field, frozen
from helpers import events
from helpers_cli import call
from helpers_plugins import load, make, plugin

from altcore import BadInput, Format, hookimpl, setting
from altcore.engine.plugins import in_order, load_plugins


class Plain:
    """Not an attrs class."""

    @hookimpl
    def run_start(self, run):
        """A hook."""


@define
class Equal:
    """Instances compare by their fields."""

    x: int = 0


@define(eq=False)
class Unmarked:
    """A hook's name without the mark."""

    def post_step(self, run, step):
        """No hook."""


@define(eq=False)
class Misneeds:
    """A need that nobody has."""

    needs = ("gradient",)


@define(eq=False)
class Defaults:
    """An argument that pluggy does not count."""

    @hookimpl
    def post_step(self, run, step=None):
        """Be called without the step."""


@define(eq=False)
class Keyword:
    """An argument by name only."""

    @hookimpl
    def post_step(self, *, step):
        """Fail when called."""


def noop(self):
    """Do nothing."""


def wrapper(self):
    """A pluggy wrapper."""
    yield


REFUSED = [
    (Plain, "is not an attrs class: use @define"),
    (Plain(), "is not an attrs class"),
    (lambda: None, "is not an attrs class"),
    (Equal, r"use @define\(eq=False\)"),
    (Unmarked, "post_step is a hook's name but not marked with @hookimpl"),
    (Misneeds, r"there is no need 'gradient' \(did you mean gradients\?\)"),
    (make({"post_stepp": noop}), r"there is no hook 'post_stepp' \(did you mean post_step\?\)"),
    (make({"post_step": noop}, tryfirst=True), "post_step: tryfirst is refused"),
    (make({"post_step": noop}, trylast=True), "post_step: trylast is refused"),
    (make({"post_step": wrapper}, wrapper=True), "post_step: wrapper is refused"),
    (make({"post_step": wrapper}, hookwrapper=True), "post_step: hookwrapper is refused"),
    (make({"elsewhere": noop}, specname="post_step"), "there is no hook 'elsewhere'"),
    (make({"on_eval": noop}, specname="post_step"), "specname is refused"),
    (
        make({"post_step": lambda self, run, stp: None}),
        r"post_step has no argument 'stp' \(did you mean step\?\): it may take run, step",
    ),
    (make({"run_start": lambda self, step: None}), "run_start has no argument 'step'"),
    (Defaults, "post_step: step has a default, and would never be passed"),
    (Keyword, "post_step: step cannot be passed by its place"),
    (make({"post_step": lambda run, step: None}), "post_step is not a method with self"),
    (make({"run_start": lambda: None}), "run_start is not a method with self"),
]


@pytest.mark.parametrize(("cls", "says"), REFUSED)
def test_what_cannot_be_a_plugin_is_refused_by_name(shelf, start, cls, says):
    """Before anything is built, with kind, name, distribution and version."""
    with pytest.raises(BadInput, match=rf"diagnostic tried \(acme-tried 9\.9\): .*{says}"):
        load(shelf, start, cls)


def test_a_plugin_that_cannot_be_imported_is_named(shelf, start, tmp_path):
    """The error of the import is told with the distribution that is to blame."""
    (tmp_path / "site" / "acme_broken.py").write_text("raise RuntimeError('no licence')\n")
    info = tmp_path / "site" / "acme_broken-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: acme-broken\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[altcore.diagnostics]\nbroken = acme_broken:X\n")
    from helpers import forget_installed

    forget_installed()
    with pytest.raises(BadInput, match=r"broken \(acme-broken 0\.1\) .*RuntimeError: no licence"):
        load_plugins(start.config(["broken"]))


def test_one_name_of_two_distributions_is_an_error_when_used(shelf, start):
    """Both are named; as long as nobody uses the name, nothing happens."""
    shelf.install("diagnostic", "twin", make({"run_start": noop}), "acme-one", "1.0")
    shelf.install("reporter", "twin", make({"run_start": noop}), "acme-two", "2.0")
    assert start(max_steps=1).status == "finished"
    with pytest.raises(BadInput, match=r"acme-one 1\.0 \(diagnostic\) and acme-two 2\.0 \(rep"):
        load_plugins(start.config(["twin"]))


def test_installed_is_not_active(shelf, start):
    """A plugin that nobody listed is not even imported."""
    shelf.install("intervention", "sleeper", None)
    run = start(max_steps=1)
    assert run.status == "finished"
    with pytest.raises(BadInput):
        start(["sleeper"], max_steps=1)


def test_settings_are_built_strictly(shelf, start):
    """Formats are resolved, and a wrong setting is named before the run begins."""

    @define(eq=False)
    class Settled:
        to: Format = setting("E5M2", help="where to")
        count: int = setting(3, help="how many")
        state: list = field(factory=list, init=False)

        @hookimpl
        def run_start(self):
            """Do nothing."""

    shelf.install("diagnostic", "settled", Settled)

    def loaded(**keys):
        (plugin,) = load_plugins(start.config(["settled"], **keys))
        return plugin.instance

    assert (loaded().to.name, loaded().count) == ("E5M2", 3)
    assert loaded(settled__to="E4M3", settled__count=5).to.name == "E4M3"
    for keys, says in (
        ({"settled__cuont": 1}, r"settled.*cuont.*did you mean count"),
        ({"settled__count": 1.5}, r"settled\.count: 1\.5 is not a whole number"),
        ({"settled__to": "E4M"}, r"settled\.to: unknown format 'E4M'"),
        ({"settled__state": []}, r"settled.*state"),
    ):
        with pytest.raises(BadInput, match=says):
            loaded(**keys)


@pytest.mark.parametrize("interval", [0, -1, "2"])
def test_an_impossible_interval_is_refused(shelf, start, interval):
    """``interval`` is a whole number of at least 1, whatever the plugin's own field says."""

    @define(eq=False)
    class Timed:
        interval: int = 1

        def __attrs_post_init__(self):
            self.interval = interval

    shelf.install("diagnostic", "timed", Timed)
    with pytest.raises(BadInput, match=r"timed\.interval: .* is not a whole number of at least 1"):
        load_plugins(start.config(["timed"]))


# ---------------------------------------------------------------------------------- order


def requiring(*names, kind="diagnostic", name="p"):
    """A plugin that reads the measures of others."""
    return plugin(define(eq=False)(type("Requiring", (), {"requires": names})), kind, name)


def names_in_order(*plugins):
    """Their names, as they are called."""
    return [p.name for p in in_order(plugins)]


def test_kinds_come_in_order_and_within_a_kind_the_users_order_holds():
    plugins = [
        requiring(kind=kind, name=name)
        for name, kind in (("r", "reporter"), ("d", "diagnostic"), ("i", "intervention"))
    ]
    assert names_in_order(*plugins, requiring(name="a")) == ["i", "d", "a", "r"]


def test_a_plugin_comes_after_those_that_it_requires():
    """Whatever the user's order and the kinds; nothing else is moved."""
    a, b, c = requiring(name="a"), requiring("c", "a", name="b"), requiring(name="c")
    assert names_in_order(b, a, c) == ["c", "a", "b"]
    clip = requiring("a", kind="intervention", name="clip")
    assert names_in_order(c, a, clip) == ["a", "clip", "c"]


def test_a_required_plugin_that_is_not_there_is_named(shelf, start):
    """With the plugin that requires it, and the flag that adds it; before anything is built."""
    shelf.install("diagnostic", "reads", define(eq=False)(type("R", (), {"requires": ("amax",)})))
    message = r"plugin reads requires the plugin amax, .*: add --plugin amax"
    with pytest.raises(BadInput, match=message):
        load_plugins(start.config(["reads"]))
    assert [p.name for p in load_plugins(start.config(["reads", "amax"]))] == ["amax", "reads"]


def test_plugins_that_require_each_other_are_refused():
    a, b = requiring("b", name="a"), requiring("a", name="b")
    with pytest.raises(BadInput, match="plugins a and b require each other"):
        in_order([a, b])
    with pytest.raises(BadInput, match="plugin a requires itself"):
        in_order([requiring("a", name="a")])
    ring = [requiring(b, name=a) for a, b in ("ab", "bc", "ca")]
    with pytest.raises(BadInput, match="plugins a, b and c require each other"):
        in_order(ring)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("amx", r"requires the plugin amx, which is not installed \(did you mean amax\?\)"),
        ("adamw", "requires adamw, which is no plugin with hooks: optimizer"),
        ("tried", "it requires itself"),
    ],
)
def test_what_can_never_be_required_is_refused_with_its_reason(shelf, start, name, says):
    """To add it with --plugin would be no way out."""
    with pytest.raises(BadInput, match=rf"diagnostic tried \(acme-tried 9\.9\): .*{says}"):
        load(shelf, start, define(eq=False)(type("R", (), {"requires": (name,)})))


def test_plugins_check_finds_what_is_required_in_vain(shelf, capsys):
    """A name that nobody has, and plugins that require each other."""
    for name, other in (("lost", "amx"), ("one", "two"), ("two", "one")):
        cls = define(eq=False)(type("R", (), {"requires": (other,)}))
        shelf.install("diagnostic", name, cls)
    result = call(capsys, "plugins", "check", "--json")
    errors = {row["name"]: row["error"] for row in json.loads(result.out) if row["error"]}
    assert result.code == 1
    assert "which is not installed" in errors.pop("lost")
    assert errors == {
        "one": "plugins one and two require each other",
        "two": "plugins two and one require each other",
    }


@pytest.mark.parametrize("attribute", ["needs", "requires"])
@pytest.mark.parametrize("slots", [True, False])
def test_a_list_of_names_belongs_to_the_class(shelf, start, attribute, slots):
    """Annotated without ClassVar it would be a setting."""
    body = {"__annotations__": {attribute: tuple}, attribute: ("gradients",)}
    says = rf'{attribute} is a field, and so a setting: write {attribute}: ClassVar = \("'
    with pytest.raises(BadInput, match=says):
        load(shelf, start, define(eq=False, slots=slots)(type("R", (), body)))


def test_needs_is_a_tuple_of_names(shelf, start):
    """A lone name would be taken for its letters."""
    with pytest.raises(
        BadInput, match="needs: 'weights' is not a tuple of names: write needs: Class"
    ):
        load(shelf, start, define(eq=False)(type("R", (), {"needs": "weights"})))


def test_requires_is_a_tuple_of_names(shelf, start):
    """A lone name would be taken for its letters."""
    with pytest.raises(BadInput, match="requires: 'amax' is not a tuple of plugins' names"):
        load(shelf, start, define(eq=False)(type("R", (), {"requires": "amax"})))


def test_measures_are_read_from_the_step(shelf, start):
    """On the device, in the hook in which they were made; absent if the other one was not due."""
    seen = []

    @define(eq=False)
    class Measured:
        interval: int = 2

        @hookimpl
        def post_backward(self, step):
            return {"half": step.loss.detach() / 2}

    @define(eq=False)
    class Reads:
        requires = ("measured",)

        @hookimpl
        def post_backward(self, step):
            found = step.measures.get("measured")
            seen.append((step.index, found and found["half"].item() * 2 == step.loss.item()))

    shelf.install("diagnostic", "measured", Measured)
    shelf.install("intervention", "reads", Reads)
    start(["reads", "measured"], max_steps=4)
    assert seen == [(1, True), (2, True), (3, None), (4, True)]


# ----------------------------------------------------------------------------------- name


@pytest.mark.parametrize("kind", ["intervention", "diagnostic", "reporter"])
def test_a_plugin_knows_its_own_name(shelf, start, kind):
    """In a field ``name`` that is not a setting: that of the entry point, whatever its default."""

    @frozen(eq=False)
    class Named:
        name: str = field(init=False, default="usual")

    (loaded,) = load(shelf, start, Named, kind)
    assert loaded.instance.name == "tried"


def test_a_setting_called_name_is_the_users(shelf, start):
    """Only a field with ``init=False`` is filled."""

    @define(eq=False)
    class Named:
        name: str = setting("usual", help="of something else")

    (loaded,) = load(shelf, start, Named)
    assert loaded.instance.name == "usual"


def test_two_plugins_of_one_class_are_told_apart(shelf, start):
    """spike-guard under another name reads its own measures, and says who it is."""
    from altcore_interventions.spike_guard import SpikeGuard

    shelf.install("intervention", "guard", SpikeGuard)
    keys = {"guard__window": 4, "guard__least": 2, "guard__threshold": 1e-3, "learning_rate": 1.0}
    result = start(["guard"], max_steps=12, **keys)
    warnings = [e["message"] for e in events(result.run_directory, "warning")]
    assert [m for m in warnings if m.startswith("guard: the loss of step")]
