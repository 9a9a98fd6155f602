"""A thousand distributions of which a hundred are broken, in ten ways: they spoil nothing else."""

import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest
from helpers import forget_installed
from helpers_cli import ROOT, TINY, call, distribution, environment, run

GOOD = """
from altcore import table_format
{name} = table_format("{name}", [-1, 0, 1])
"""


def break_metadata(info, way):
    """Spoil a distribution's metadata in one of the ways in which all of it is left out."""
    points = info / "entry_points.txt"
    if way == "latin-1 entry points":
        points.write_bytes(b"[altcore.formats]\n# caf\xe9\nx = acme_none:x\n")
    elif way == "latin-1 metadata":
        (info / "METADATA").write_bytes(b"Metadata-Version: 2.1\nName: acme\nAuthor: Ren\xe9\n")
    elif way == "no equals sign":
        points.write_text("[altcore.formats]\nx acme_none:x\n")
    elif way == "unrelated":
        points.write_text("[console_scripts]\nx acme_none:x\n")
    elif way == "unrelated latin-1":
        points.write_bytes(b"[console_scripts]\n\xe9 = acme_none:x\n")


LEFT_OUT = (
    "latin-1 entry points",
    "latin-1 metadata",
    "no equals sign",
    "unrelated",
    "unrelated latin-1",
)
BROKEN = (
    *LEFT_OUT,
    "misspelt group",
    "does not import",
    "no format",
    "clashes",
    "prints",
)

trains = pytest.mark.skipif(
    find_spec("triton") is not None,
    reason="triton, which torch imports with its first optimizer, reads all entry points",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with a thousand distributions: 900 sound formats, and ten broken in each way."""
    folder = tmp_path_factory.mktemp("site")
    for i in range(900):
        if i < 5:
            code = {f"acme_good{i}": GOOD.format(name=f"GOOD{i}")}
            points = {"format": {f"GOOD{i}": f"acme_good{i}:GOOD{i}"}}
        else:
            code, points = {}, {"diagnostic": {f"acme-diagnostic-{i}": "acme_nowhere:X"}}
        distribution(folder, f"acme-good{i}", points, **code)
    for way in BROKEN:
        for i in range(10):
            name = f"acme-{way.replace(' ', '-')}-{i}"
            module = name.replace("-", "_")
            kind, point, text = "format", f"X{BROKEN.index(way)}{i}", "x = 1"
            if way == "misspelt group":
                kind = "format"
            elif way == "does not import":
                text = "def broken(:"
            elif way == "clashes":
                point = "GOOD0"
            elif way == "prints":
                text = f"print('hello')\n{GOOD.format(name='x')}".replace('"x"', f'"{point}"')
            distribution(folder, name, {kind: {point: f"{module}:x"}}, **{module: text})
            info = folder / f"{module}-1.0.dist-info"
            break_metadata(info, way)
            if way == "misspelt group":
                points = (info / "entry_points.txt").read_text()
                (info / "entry_points.txt").write_text(points.replace("formats", "format"))
    return folder


@pytest.fixture
def here(site, monkeypatch):
    """The same folder on the path of this process."""
    monkeypatch.syspath_prepend(str(site))
    forget_installed()
    yield
    forget_installed()
    for name in [n for n in sys.modules if n.startswith("acme_")]:
        del sys.modules[name]


@pytest.mark.usefixtures("here")
def test_help_reads_no_metadata(capsys, monkeypatch):
    """So that it is as fast, however many distributions there are."""
    monkeypatch.setattr("importlib.metadata.distributions", None)
    found = call(capsys, "--help")
    assert (found.code, found.err) == (0, "")


@pytest.mark.usefixtures("here")
def test_plugins_list(site, capsys):
    """Each distribution that is left out is named once, with its file; all others are listed."""
    since = time.process_time()
    found = call(capsys, "plugins", "list", "--json")
    assert time.process_time() - since < 2
    assert found.code == 0
    names = {row["name"] for row in json.loads(found.out)}
    assert {"GOOD4", "acme-diagnostic-899", "E4M3", "X70"} <= names
    told = found.err.splitlines()
    assert len(told) == len(set(told)) == 10 * len((*LEFT_OUT, "misspelt group"))
    assert all(str(site) in line for line in told)
    assert sum(line.endswith(": left out") for line in told) == 10 * len(LEFT_OUT)
    assert sum("there is no group altcore.format " in line for line in told) == 10
    assert sum("is not UTF-8" in line for line in told) == 30
    assert sum("'x acme_none:x', is not name = value" in line for line in told) == 20


@pytest.mark.usefixtures("here")
def test_formats_list(capsys):
    """A broken format and a name that is claimed twice are left out."""
    found = call(capsys, "formats", "list")
    assert found.code == 0
    assert "GOOD4" in found.out
    assert "GOOD0" not in found.out
    assert found.err.count("'GOOD0' is claimed by") == 1
    assert found.err.count("cannot be loaded: SyntaxError") == 10
    assert found.err.count("is int 1") == 10


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("command", [("formats", "list"), ("plugins", "check")])
def test_json_is_nothing_but_json(capsys, command):
    """Plugins that print when they are imported print elsewhere."""
    found = call(capsys, *command, "--json")
    assert {row["name"] for row in json.loads(found.out)} >= {"GOOD4", "E4M3"}
    assert found.err.count("hello") == 10


@pytest.mark.usefixtures("here")
def test_plugins_check(capsys):
    """Every one is named, and what its group was meant to be."""
    found = call(capsys, "plugins", "check")
    assert found.code == 1, found.err
    lines = found.out.splitlines()
    assert (
        sum("there is no group altcore.format (did you mean altcore.formats?)" in x for x in lines)
        == 10
    )
    for way in (*LEFT_OUT, "does not import", "no format", "clashes"):
        own = [
            x
            for x in lines
            if f"acme_{way.translate(str.maketrans(' -', '__'))}_" in x.replace("-", "_")
        ]
        assert [x for x in own if "BROKEN" in x], way
    assert "format GOOD4 (acme-good4 1.0): ok" in lines


@trains
def test_train(site, tmp_path, corpus):
    """It trains, by a family's format too, and names a few of those that are left out."""
    asked = ("train", *TINY, "--data", corpus, "--steps", "1", "--format", "GOOD4")
    found = run(*asked, cwd=tmp_path, path=[site])
    assert found.code == 0, found.err
    told = [x for x in found.err.splitlines() if x.startswith("altcore: ")]
    assert len([x for x in told if x.endswith(": left out")]) == 5
    assert "altcore: and 45 more; altcore plugins check names them all" in told


@pytest.fixture
def families(tmp_path, monkeypatch):
    """Three broken families whose pattern fits the name of E5M5, beside the one that answers."""
    folder = tmp_path / "families"
    codes = {"imports": "import acme_nothing", "calls": "x = 1", "fails": "x = lambda name: 1 / 0"}
    for name, code in codes.items():
        points = {"format": {"E*": f"acme_{name}:x"}}
        distribution(folder, f"acme-{name}", points, **{f"acme_{name}": code})
    monkeypatch.syspath_prepend(str(folder))
    forget_installed()
    yield list(codes)
    forget_installed()
    for name in codes:
        sys.modules.pop(f"acme_{name}", None)


BROKEN_FAMILIES = {
    "imports": "format E* (acme-imports 1.0) cannot be loaded: ModuleNotFoundError",
    "calls": "format family E* (acme-calls 1.0) is int 1",
    "fails": "format family E* (acme-fails 1.0) failed on 'E5M5': ZeroDivisionError",
}


def test_broken_families_are_named_where_they_are_asked_cache(families, tmp_path, corpus, capsys):
    """Another one answers, so that the run goes on; each is named once."""
    given = ("--data", corpus, "--set", f"runs_dir={tmp_path}", "--steps", "1", "--format", "E5M5")
    for again in (False, True):
        found = call(capsys, "train", *TINY, *given)
        assert found.code == 0, found.err
        told = [x for x in found.err.splitlines() if x.endswith(": left out")]
        assert len(told) == (0 if again else len(families))
        for line, text in zip(told, sorted(BROKEN_FAMILIES.values()), strict=not again):
            assert line.startswith(f"altcore: {text}")


def test_broken_families_are_named_in_the_list(families, capsys):
    """They are no families that one could ask. Whether a function fails only asking shows."""
    found = call(capsys, "formats", "list")
    assert (found.code, found.out.count("E*,")) == (0, 1)
    for name in ("imports", "calls"):
        assert found.err.count(BROKEN_FAMILIES[name]) == 1


@trains
def test_from_python_those_left_out_are_named_once(site, tmp_path, corpus):
    """As the command names them, by a warning of the first training."""
    code = f"""
import altcore
keys = {{"gpt.size": "tiny", "gpt.n_layer": 1, "gpt.data": {str(corpus)!r}, "max_steps": 1}}
for _ in range(2):
    altcore.train({{**keys, "no_plugins": ["progress"], "device": "cpu"}})
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment([site]),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = done.stdout + done.stderr
    assert (told.count(": left out"), told.count("and 45 more; altcore plugins check")) == (5, 1)


@pytest.mark.usefixtures("here")
def test_an_unknown_name_offers_five(capsys):
    """And not all that are installed."""
    found = call(capsys, "train", "--plugin", "acme-diagnostic-8999")
    assert found.code == 2
    assert "did you mean acme-diagnostic-899?" in found.message
    assert found.message.count("acme-diagnostic-") == 7
    assert len(found.message) < 400


def test_torch_is_imported_from_python_beside_a_broken_distribution(site, tmp_path):
    """Torch itself looks through all entry points as it is imported."""
    code = "import altcore; print(altcore.quantize.__name__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment([site]),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "quantize\n"), done.stderr


@pytest.mark.parametrize(
    ("command", "how"),
    [
        ("train", "closed"),
        ("train", "its reader has gone"),
        ("plugins", "closed"),
        ("plugins", "full"),
    ],
)
def test_standard_error_may_be_closed_or_full(command, how, tmp_path, corpus):
    """Nothing is written into another file in its place, and nothing fails."""
    given = ["train", *TINY, "--data", str(corpus), "--steps", "2"]
    arguments = given if command == "train" else ["plugins", "check"]

    def spoil():
        if how == "closed":
            os.close(2)
        elif how == "full":
            os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
        else:
            reader, writer = os.pipe()
            os.close(reader)
            os.dup2(writer, 2)

    done = subprocess.run(
        [sys.executable, "-m", "altcore", *arguments],
        cwd=tmp_path,
        env=environment([ROOT]),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        preexec_fn=spoil,
    )
    assert done.returncode == 0
    assert ("status" if command == "train" else "ulp-stats") in done.stdout
    for file in tmp_path.glob("runs/*/*.jsonl"):
        assert all(isinstance(json.loads(line), dict) for line in file.read_text().splitlines())
