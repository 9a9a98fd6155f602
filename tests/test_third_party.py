"""Plugins that altcore has never heard of: installed for real, broken, and at odds.

The example is built, and installed into a fresh environment beside altcore and the first-party
plugins. In the quick variant, third-party dependencies come from the running environment; the
slow one installs everything.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from attrs import frozen
from helpers import forget_installed
from helpers_cli import ROOT, TINY, call, distribution, environment, run
from test_packaging import ALL, build_wheels

EXAMPLE = ROOT / "examples" / "altcore-format-lloyd16"


@frozen
class Environment:
    """A virtual environment."""

    folder: Path

    @property
    def python(self) -> str:
        """Its interpreter."""
        return str(self.folder / "bin" / "python")

    @property
    def packages(self) -> Path:
        """Where its packages lie."""
        x, y = sys.version_info[:2]
        return self.folder / "lib" / f"python{x}.{y}" / "site-packages"

    def pip(self, *arguments: str | Path) -> None:
        """Run pip in it."""
        outside = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python"]
        done = subprocess.run(
            [*outside, self.python, *map(str, arguments)],
            cwd=self.folder,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def install(self, *wheels: Path) -> None:
        """Install wheels, and nothing else."""
        self.pip("install", "--no-deps", "--no-index", "--no-compile", *wheels)

    def altcore(self, *arguments: str | Path, cwd: Path | None = None):
        """Run the command in it."""
        return run(*arguments, cwd=cwd or self.folder, python=self.python)

    def ask(self, code: str) -> str:
        """Return what a line of Python prints in it."""
        done = subprocess.run(
            [self.python, "-c", code],
            cwd=self.folder,
            env=environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()


def borrow_dependencies(fresh, folder):
    """Let the environment use what is installed here, but altcore and its plugins."""
    folder.mkdir()
    for packages in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for path in Path(packages).iterdir():
            if not path.name.startswith("altcore") and path.suffix != ".pth":
                (folder / path.name).symlink_to(path)
    (fresh.packages / "dependencies.pth").write_text(f"{folder}\n")


def digests(fresh):
    """Return the digest of every installed file of altcore and the first-party plugins."""
    return {
        file: hashlib.sha256(file.read_bytes()).hexdigest()
        for folder in fresh.packages.glob("altcore*")
        if "format_lloyd16" not in folder.name and folder.is_dir()
        for file in folder.rglob("*")
        if file.is_file() and file.suffix != ".pyc"
    }


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """The wheels of altcore, the first-party plugins and the example, last."""
    return build_wheels(tmp_path_factory.mktemp("wheels"), ALL)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory, wheels):
    """A fresh environment into which pip has put all of them but the example."""
    folder = tmp_path_factory.mktemp("fresh")
    command = [sys.executable, "-m", "venv", "--without-pip", str(folder / "env")]
    subprocess.run(command, check=True)
    made = Environment(folder / "env")
    borrow_dependencies(made, folder / "dependencies")
    made.install(*wheels[:-1])
    return made


# ---------------------------------------------------------------------- installed for real


def test_installing_the_example_is_enough(fresh, wheels, tmp_path, corpus):
    """LLOYD16 is listed, loads, trains and passes its tests; no file of the core has changed.

    Uninstalled, it is unknown again.
    """
    where = fresh.ask("import altcore; print(altcore.__file__)")
    assert Path(where).is_relative_to(fresh.folder), "the checkout is used, not the wheel"
    outcome = fresh.altcore("train", "--format", "LLOYD16", cwd=tmp_path)
    assert outcome.code == 2
    assert "unknown format 'LLOYD16'" in outcome.message
    before = digests(fresh)
    assert len(before) > 50

    fresh.install(wheels[-1])
    assert digests(fresh) == before
    listed = fresh.altcore("plugins", "list", "--json")
    (row,) = [r for r in json.loads(listed.out) if r["name"] == "LLOYD16"]
    assert (row["kind"], row["distribution"]) == ("format", "altcore-format-lloyd16")
    assert (row["version"], row["duplicate"]) == ("1.0.0", False)
    assert "Lloyd-Max" in row["summary"]

    checked = fresh.altcore("plugins", "check")
    assert checked.code == 0, checked.out
    assert "format LLOYD16 (altcore-format-lloyd16 1.0.0): ok" in checked.out

    outcome = fresh.altcore(
        *("train", "--format", "LLOYD16", *TINY, "--set", "gpt.batch_size=2", "--steps", "3"),
        *("--data", corpus),
        cwd=tmp_path,
    )
    assert outcome.code == 0, outcome.err
    assert "LLOYD16, master" in outcome.out
    lines = (tmp_path / "runs/lloyd16-master/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 3]
    about = json.loads((tmp_path / "runs/lloyd16-master/environment.json").read_text())
    assert "altcore-format-lloyd16 1.0.0" in about["distributions"]

    # The example's own tests, as its author would run them, away from this repository.
    shutil.copytree(EXAMPLE / "tests", tmp_path / "tests")
    (tmp_path / "pytest.ini").touch()
    done = subprocess.run(
        [fresh.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b[1-9]\d* passed", done.stdout)
    assert digests(fresh) == before

    fresh.pip("uninstall", "--yes", "altcore-format-lloyd16")
    assert '"LLOYD16"' not in fresh.altcore("plugins", "list", "--json").out


def test_the_core_knows_nothing_of_the_example():
    """Neither code nor data of altcore and its plugins name it."""
    for folder in ("altcore", "plugins"):
        for file in (ROOT / folder).rglob("*"):
            if file.suffix in (".py", ".yaml", ".toml", ".c"):
                assert "altcore_format_lloyd16" not in file.read_text(), file


@pytest.mark.slow
def test_one_pip_command_installs_everything(tmp_path, corpus):
    """The command of the README, dependencies included, into an environment with nothing in it."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    made = Environment(tmp_path / "env")
    made.pip("install", "-c", ROOT / "constraints.txt", *ALL)
    assert made.altcore("plugins", "check").code == 0
    outcome = made.altcore(
        *("train", "--format", "LLOYD16", *TINY, "--steps", "3", "--data", corpus), cwd=tmp_path
    )
    assert outcome.code == 0, outcome.err
    assert "LLOYD16, master" in outcome.out


# ---------------------------------------------------------------------- broken, and at odds

PLUGIN = """
from attrs import define
from altcore import hookimpl

@define(eq=False)
class Thing:
    '''A thing of a test.'''

    @hookimpl
    def {hook}(self, run):
        pass
"""
FAMILY = """
from altcore import float_format

def family(name):
    exponent, _, mantissa = name.removeprefix("X").partition("Y")
    if not (exponent.isdigit() and mantissa.isdigit()):
        return None
    return float_format({name}, int(exponent), int(mantissa))
"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder on the path, for distributions; the working directory is another one."""
    folder, work = tmp_path / "site", tmp_path / "work"
    folder.mkdir()
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.syspath_prepend(str(folder))
    forget_installed()
    yield folder
    forget_installed()
    for name in [n for n in sys.modules if n.startswith("acme_")]:
        del sys.modules[name]


SOUND = PLUGIN.format(hook="run_start")


def diagnostic(site, name="acme-thing", text=SOUND, plugin="thing"):
    """Lay a distribution with one diagnostic; returns its module's name."""
    module = name.replace("-", "_")
    distribution(site, name, {"diagnostic": {plugin: f"{module}:Thing"}}, **{module: text})
    forget_installed()
    return module


def refused(capsys, *words, name="thing"):
    """`plugins list` shows the plugin, `info` and `train` end with 2, `check` with 1, naming it."""
    listed = call(capsys, "plugins", "list")
    assert listed.code == 0
    assert name in listed.out
    shown = call(capsys, "plugins", "info", name)
    checked = call(capsys, "plugins", "check")
    trained = call(capsys, "train", "--plugin", name)
    assert (shown.code, checked.code, trained.code) == (2, 1, 2)
    (broken,) = [x for x in checked.out.splitlines() if not x.endswith(": ok")]
    assert "BROKEN: " in broken
    assert "ulp-stats (altcore-diagnostics 0.1.0): ok" in checked.out
    for text in (shown.err, trained.err):
        assert text.count("\n") == 1
    for text in (shown.err, broken, trained.err):
        assert not [w for w in words if w not in text], text
    assert list(Path().iterdir()) == []


def test_a_sound_plugin_on_the_path_works(site, capsys):
    """The counterpart of the tests below: the same plugin unbroken is listed, shown and checked."""
    diagnostic(site)
    assert call(capsys, "plugins", "check").code == 0
    about = json.loads(call(capsys, "plugins", "info", "thing", "--json").out)
    assert about["distribution"] == "acme-thing"
    assert about["version"] == "1.0"
    assert about["summary"] == "acme-thing for a test"
    assert about["description"] == "A thing of a test."
    assert about["hooks"] == ["run_start"]
    assert about["settings"] == []


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("import acme_nowhere", "ModuleNotFoundError: No module named 'acme_nowhere'"),
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
        ("def broken(:", "SyntaxError"),
        ("raise SystemExit(0)", "SystemExit"),
        ("Other = 1", "AttributeError"),
    ],
)
def test_a_plugin_that_cannot_be_imported(text, error, site, capsys):
    """Named with distribution, version and error; every other plugin still works."""
    diagnostic(site, text=text)
    refused(capsys, "thing (acme-thing 1.0)", error)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (PLUGIN.format(hook="post_stpe"), ("no hook 'post_stpe'", "did you mean post_step?")),
        (SOUND.replace("self, run", "self, rum"), ("'rum'", "run?")),
        (SOUND.replace("    @hookimpl\n", ""), ("not marked",)),
        (SOUND.replace("(eq=False)", ""), ("@define(eq=False)",)),
        (SOUND.replace("@define(eq=False)", ""), ("attrs class",)),
        (
            SOUND.replace("@hookimpl", "@hookimpl(tryfirst=True)"),
            ("tryfirst is refused",),
        ),
        (
            SOUND.replace("    @hook", "    needs = ('wieghts',)\n\n    @hook"),
            ("no need 'wieghts'",),
        ),
        ("Thing = 3", ("3 is not an attrs class",)),
    ],
    ids=["hook", "argument", "unmarked", "equal", "no attrs", "tryfirst", "need", "no class"],
)  # fmt: skip
def test_a_plugin_that_cannot_be_called(text, words, site, capsys):
    """An unknown hook, argument or need is found when it is loaded, not in the middle of a run."""
    diagnostic(site, text=text)
    refused(capsys, "thing (acme-thing 1.0)", *words)


def test_a_plugin_that_is_not_used_breaks_nothing(site, capsys, corpus):
    """Installed is not active: a broken distribution stops no run that does not name it."""
    diagnostic(site, text="raise RuntimeError")
    outcome = call(capsys, "train", *TINY, "--data", corpus, "--steps", "1")
    assert outcome.code == 0, outcome.err


def test_two_distributions_with_one_name(site, capsys):
    """Listed twice and marked; an error when it is used, which names both."""
    diagnostic(site, "acme-thing")
    diagnostic(site, "other-thing")
    rows = [
        r for r in json.loads(call(capsys, "plugins", "list", "--json").out) if r["name"] == "thing"
    ]
    assert [r["distribution"] for r in rows] == ["acme-thing", "other-thing"]
    assert all(r["duplicate"] for r in rows)
    assert call(capsys, "plugins", "list").out.count("claimed twice") == 2
    checked = call(capsys, "plugins", "check")
    assert checked.code == 1
    broken = [x for x in checked.out.splitlines() if not x.endswith(": ok")]
    assert len(broken) == 2
    for text in (
        *broken,
        call(capsys, "plugins", "info", "thing").err,
        call(capsys, "train", "--plugin", "thing").err,
    ):
        assert "acme-thing 1.0" in text
        assert "other-thing 1.0" in text
    assert call(capsys, "train", "--plugin", "thing").code == 2
    assert list(Path().iterdir()) == []


def test_two_formats_with_one_name(site, capsys):
    """A third party's E3M4 does not silently become everybody's."""
    text = "from altcore import table_format\nX = table_format('E3M4', [0, 1])\n"
    distribution(site, "acme-e3m4", {"format": {"E3M4": "acme_e3m4:X"}}, acme_e3m4=text)
    forget_installed()
    outcome = call(capsys, "train", "--format", "E3M4")
    assert outcome.code == 2
    assert "acme-e3m4 1.0" in outcome.message
    assert "altcore-formats" in outcome.message


def test_one_name_in_two_kinds(site, capsys):
    """--plugin cannot know which is meant; `plugins info` takes --kind."""
    text = SOUND
    points = {"diagnostic": {"thing": "acme_both:Thing"}, "reporter": {"thing": "acme_both:Thing"}}
    distribution(site, "acme-both", points, acme_both=text)
    forget_installed()
    outcome = call(capsys, "train", "--plugin", "thing")
    assert outcome.code == 2
    assert "(diagnostic)" in outcome.message
    assert "(reporter)" in outcome.message
    asked = call(capsys, "plugins", "info", "thing")
    assert asked.code == 2
    assert "--kind" in asked.message
    about = call(capsys, "plugins", "info", "thing", "--kind", "reporter", "--json")
    assert json.loads(about.out)["kind"] == "reporter"


def family(site, name, pattern, format_name="name"):
    """Lay a distribution with a family of formats called X<exponent>Y<mantissa>."""
    module = name.replace("-", "_")
    text = FAMILY.format(name=format_name)
    distribution(site, name, {"format": {pattern: f"{module}:family"}}, **{module: text})
    forget_installed()


def test_a_family_answers_for_its_names(site, capsys):
    """And only for those; what it says is credited to its distribution."""
    family(site, "acme-family", "X*Y*")
    about = json.loads(call(capsys, "plugins", "info", "X3Y4", "--json").out)
    assert about["distribution"] == "acme-family"
    assert about["format"]["bits"] == 8
    assert call(capsys, "plugins", "info", "X*Y*").code == 0
    outcome = call(capsys, "train", "--format", "XaYb")
    assert outcome.code == 2
    assert "unknown format 'XaYb'" in outcome.message


def test_two_families_that_answer(site, capsys):
    """An error that names both, when a name is used to which both answer."""
    family(site, "acme-family", "X*Y*")
    family(site, "other-family", "X3*")
    for arguments in (("train", "--format", "X3Y4"), ("plugins", "info", "X3Y4")):
        outcome = call(capsys, *arguments)
        assert outcome.code == 2
        assert "X*Y* of acme-family 1.0" in outcome.message
        assert "X3* of other-family 1.0" in outcome.message
    assert call(capsys, "plugins", "info", "X4Y3").code == 0
    assert call(capsys, "plugins", "check").code == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def family(name): raise OSError('gone')", "failed on 'X1Y1': OSError: gone"),
        ("def family(name): return 5", "gave int for 'X1Y1'"),
        ("family = 5", "names a function from a name to a Format"),
        (FAMILY.format(name="'other'"), "calls itself 'other'"),
    ],
    ids=["raises", "no format", "no function", "another name"],
)
def test_a_family_that_is_broken(text, words, site, capsys):
    """Named with distribution and version, and no run begins."""
    distribution(site, "acme-family", {"format": {"X*Y*": "acme_family:family"}}, acme_family=text)
    forget_installed()
    outcome = call(capsys, "train", "--format", "X1Y1")
    assert outcome.code == 2
    assert "acme-family 1.0" in outcome.message
    assert words in outcome.message
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("X = 5", "is int 5"),
        ("X = None", "is NoneType None"),
        ("class X: pass", "is the class X, not a Format"),
        ("def X(name): raise OSError('gone')", "the function of format X (acme-x 1.0) failed on"),
        (
            "from altcore import table_format\nX = table_format('other', [0, 1])",
            "calls itself 'other'",
        ),
    ],
)
def test_an_entry_point_that_is_no_format(text, words, site, capsys):
    """A format is a Format of the entry point's name: config.yaml must find it again."""
    distribution(site, "acme-x", {"format": {"X": "acme_x:X"}}, acme_x=text)
    forget_installed()
    for arguments in (("train", "--format", "X"), ("plugins", "info", "X")):
        outcome = call(capsys, *arguments)
        assert outcome.code == 2
        assert "format X (acme-x 1.0)" in outcome.message
        assert words in outcome.message
        assert "family" not in outcome.message
    assert call(capsys, "plugins", "check").code == 1
    assert words in call(capsys, "formats", "list").err


@pytest.mark.parametrize("kind", ["optimizer", "workload"])
def test_an_entry_point_that_builds_nothing(kind, site, capsys):
    """Optimizers and workloads are settings with a method build."""
    text = SOUND
    distribution(site, "acme-thing", {kind: {"thing": "acme_thing:Thing"}}, acme_thing=text)
    forget_installed()
    checked = call(capsys, "plugins", "check")
    assert checked.code == 1
    assert f"{kind} thing (acme-thing 1.0)" in checked.out
    assert "a method build" in checked.out


@pytest.mark.parametrize("name", ["a.b", "a/b", "a:b", "<script>", "../x", "ä"])
def test_a_name_that_cannot_be_typed(name, site, capsys):
    """Names are letters, digits, dash, plus and underscore: no path, no dotted key, no markup."""
    points = {"diagnostic": {name: "acme_thing:Thing"}}
    distribution(site, "acme-thing", points, acme_thing=SOUND)
    forget_installed()
    checked = call(capsys, "plugins", "check")
    assert checked.code == 1
    assert "letters, digits" in checked.out
    assert call(capsys, "train", "--plugin", name).code == 2


def test_broken_metadata_hides_nothing_else(site, capsys):
    """Entry points without METADATA, or with lines that are none, leave the list as it was."""
    before = json.loads(call(capsys, "plugins", "list", "--json").out)
    info = site / "acme_torn-1.0.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_text("[altcore.diagnostics]\n\n# none\nno equals\n[other\n")
    forget_installed()
    assert json.loads(call(capsys, "plugins", "list", "--json").out) == before
    (info / "entry_points.txt").write_text("[altcore.diagnostics]\nthing = acme_torn:Thing\n")
    forget_installed()
    assert "thing" in call(capsys, "plugins", "list").out


def test_a_distribution_as_a_process_sees_it(site):
    """The same from the shell, with PYTHONPATH."""
    diagnostic(site, text="raise RuntimeError('broken on purpose')")
    trained = run("train", "--plugin", "thing", cwd=Path.cwd(), path=[site])
    assert trained.code == 2
    assert trained.err.count("\n") == 1
    assert "RuntimeError: broken on purpose" in trained.err
    assert list(Path().iterdir()) == []
