"""Bad input: exit code 2, one line that names the thing and what would be right, nothing written.

Whatever a person can get wrong on the command line or in a file is a row here.
"""

import json
from pathlib import Path

import pytest
import torch
from attrs import field, frozen
from helpers import forget_installed
from helpers_cli import call, distribution, run

from altcore.study.commands import READING

FILES = {
    "empty.txt": "",
    "short.txt": "too short for one batch",
    "broken.yaml": "max_steps: 3\nformat: [E3M4\nseed: 1\n",
    "tab.yaml": "gpt:\n\tsize: tiny\n",
    "twice.yaml": "seed: 1\nmax_steps: 2\nseed: 2\n",
    "twice-below.yaml": "gpt:\n  size: tiny\n  n_layer: 1\n  size: small\n",
    "two-forms.yaml": "n_layer: 1\nsettings: {gpt: {n_layer: 2}}\n",
    "list.yaml": "- seed: 1\n",
    "code.yaml": "seed: !!python/object/apply:os.getpid []\n",
    "two-documents.yaml": "seed: 1\n---\nseed: 2\n",
    "misspelt.yaml": "max_stesp: 3\n",
    "flips.yaml": "plugins: [flips]\n",
    "real.yaml": "max_steps: 3.7\n",
    "word.yaml": "strict: 'false'\n",
    "no-mapping.yaml": "gpt: tiny\n",
    "nothing-below.yaml": "gpt:\n",
    "unknown-empty.yaml": "gtp: {}\n",
    "names.yaml": "plugins: ulp-stats\n",
    "not-names.yaml": "plugins: [3]\n",
    "left-out.yaml": "no_plugins: 5\n",
    "setting.yaml": "plugins: [ulp-stats]\nulp-stats: {interval: 0}\n",
    "pattern.yaml": "layers:\n  transfomer.*:\n    weight: E3M4\n",
    "role.yaml": "wieght: E3M4\n",
    "role-below.yaml": "layers:\n  '*':\n    wieght: E3M4\n",
    "format.yaml": "weight: E3M5x\n",
    "scaling.yaml": "weight: {format: E3M4, scaling: tensro}\n",
    "selector.yaml": "skip: [<haed>]\n",
    "its-name.yaml": "name: 3\nweight: E4M3\n",
    "its-recipe.yaml": "recipe: nowhere.yaml\n",
    "its-format.yaml": "format: E3M5x\n",
    "words.npy": "no numbers",
    "empty.npy": "",
}

TABLES = {
    "ONE": "[1.0]",
    "UNORDERED": "[0.0, 1.0, 0.5]",
    "EQUAL": "[0.0, 1.0, 1.0]",
    "NAN": "[0.0, float('nan'), 1.0]",
    "INFINITE": "[0.0, float('inf')]",
    "NEGATIVE": "[-1.0, 0.0]",
}


@frozen
class Case:
    """Arguments, and what the line on standard error has to say."""

    name: str
    arguments: tuple[str, ...]
    says: tuple[str, ...]
    command: str = field(default="train", kw_only=True)
    usage: bool = field(default=False, kw_only=True)
    """Whether it is click that refuses, and may show its usage first."""


def case(name, arguments, *says, **more):
    given = tuple(arguments.split()) if isinstance(arguments, str) else arguments
    return Case(name, given, says, **more)


UNKNOWN = [
    case("format", "--format E3M5x", "'E3M5x'", "did you mean E3M4?", "--format"),
    case("format's case", "--format e7m0", "'e7m0'", "did you mean E7M0?"),
    case("format that cannot be", "--format E20M20", "E20M20", "2 to 16"),
    case(
        "format, empty",
        ("--format", ""),
        "unknown format ''",
        "the nearest of",
        "altcore plugins list has all",
    ),
    case("format that is not a name", "--set format=5", "format", "by its name, not by 5", "--set"),
    case("plugin", "--plugin ulp-stat", "'ulp-stat'", "did you mean ulp-stats?"),
    case("plugin of another kind", "--plugin gpt", "'gpt' is a workload", "--workload gpt"),
    case("format of another kind", "--format adamw", "an optimizer", "--optimizer adamw"),
    case("report of another kind", "gpt x", "a workload, not a reporter", command="report"),
    case("nothing to explain", "--steps 3", "explain needs --format", command="explain"),
    case("explain: pure", "--recipe pure", "explain needs --format", "--recipe", command="explain"),
    case("a recipe for a format", "--format master", "master is a recipe", "by --recipe master"),
    case("format of no family", "--format Zq9", "families are", "E*M*", "posit*_*"),
    case("format to explain", "--format E3M5x", "E3M4?", "given by --format", command="explain"),
    case("formats", "--formats E4M3,E3M5x", "E3M4?", "by --formats", command="compare"),
    case("recipes", "--formats E4M3 --recipes purr", "by --recipes", command="compare"),
    case("workload", "--workload gtp", "workload 'gtp'", "did you mean gpt?"),
    case("optimizer", "--optimizer adam", "optimizer 'adam'", "did you mean adamw?"),
    case("setting", "--set gpt.sizes=tiny", "gpt.sizes", "did you mean size?", "n_layer"),
    case("setting below a setting", "--set gpt.size.x=1", "gpt.size.x", "did you mean size?"),
    case(
        "setting of a plugin",
        "--plugin ulp-stats --set ulp-stats.intervl=2",
        "ulp-stats.intervl",
        "did you mean interval?",
    ),
    case("key", "--set max_step=3", "'max_step'", "did you mean max_steps?", "--set"),
    case("key in a file", "--config misspelt.yaml", "'max_stesp'", "max_steps?", "misspelt.yaml"),
    case("short key", "--set n_layers=3", "'n_layers'", "did you mean n_layer?"),
    case("name before a setting", "--set ulp-stat.interval=3", "ulp-stat", "ulp-stats?", "--set"),
    case("name before nothing", "--config unknown-empty.yaml", "gtp", "gpt?", "unknown-empty.yaml"),
    case("setting of a key", "--set recipe.weight=E3M4", "recipe: a key with one value"),
    case("no name before a setting", "--set .size=tiny", "--set .size=tiny", "KEY=VALUE"),
    case("key that only the flag may use", "--set +plugins=ulp-stats", "'+plugins'", "plugins?"),
    case("recipe", "--recipe mastr", "'mastr'", "did you mean master?", ".yaml", "--recipe"),
    case("recipe that is a format", "--recipe E4M3", "is a format", "--format E4M3", "--recipe"),
    case("freeze", "--set freeze=[hed]", "freeze", "'hed'", "layers are transformer.wte", "--set"),
    case("compute", "--set compute=float16", "compute", "float32", "bfloat16", "float16"),
    case("device", "--device tpu", "'tpu'", "auto, cpu, cuda or cuda:N"),
    case("option", "--frmat E3M4", "--frmat", "--format", usage=True),
    case("argument", "E3M4", "E3M4", usage=True),
    case("command", "trian", "'trian'", "did you mean train?", command="", usage=True),
    case("plugin to show", "info ulp-stat", "'ulp-stat'", "ulp-stats?", command="plugins"),
    case("format to show", "info E30M3", "E30M3", "2 to 16", command="plugins"),
    case("command of a group", "lst", "'lst'", "did you mean list?", command="runs", usage=True),
    case(
        "no command of a group",
        "zzz",
        "'zzz'",
        "list, restore, show",
        command="runs",
        usage=True,
    ),
    case("kind", "list --kind foo", "'foo'", "'format'", command="plugins", usage=True),
    case("run to show", "show nothing", "'nothing'", "in runs", command="runs"),
    case("run to show outside", "show ../x", "'../x'", "is not a name", command="runs"),
]

VALUES = [
    case("out of range", "--steps 0", "max_steps", ">= 1", "0", "--steps"),
    case("steps and epochs", "--steps 3 --set epochs=2", "epochs: max_steps is given, too"),
    case("epochs of gpt", "--set epochs=2", "epochs: the workload gpt", "max_steps", "--set"),
    case("no interval", "--plugin ulp-stats --set ulp-stats.interval=2x", "2x", "0.25 epoch"),
    case("monitor", "--set monitor=val_los", "monitor", "did you mean val_loss?", "--set"),
    case("monitor's direction", "--set monitor_mode=up", "monitor_mode", "min", "max", "--set"),
    case("schedule", "--set schedule=step", "schedule", "cosine-full", "--set"),
    case("negative seed", "--seed -1", "seed", ">= 0", "-1"),
    case(
        "seed too large for torch", "--seed 99999999999999999999", "seed", "< 9223372036854775808"
    ),
    case("learning rate 0", "--set learning_rate=0", "learning_rate", "> 0", "--set"),
    case("learning rate nan", "--set learning_rate=.nan", "learning_rate", "nan"),
    case("learning rate inf", "--set learning_rate=.inf", "learning_rate", "inf"),
    case("share above 1", "--set min_lr_ratio=1.5", "min_lr_ratio", "<= 1", "1.5"),
    case("setting of the workload", "--set gpt.dropout=1", "gpt.dropout", "1.0", "[0, 1)"),
    case("setting of the optimizer", "--set adamw.beta1=1", "adamw.beta1", "< 1", "--set"),
    case(
        "setting in a file", "--config setting.yaml", "ulp-stats.interval", ">= 1", "setting.yaml"
    ),
    case("settings that disagree", "--set gpt.n_head=3", "gpt.n_head", "3", "does not divide"),
    case("real for a whole number", "--steps 3.7", "max_steps", "3.7 is not a whole number"),
    case("real in a file", "--config real.yaml", "3.7 is not a whole number", "real.yaml"),
    case("real for a setting", "--set gpt.n_layer=1.0", "gpt.n_layer", "1.0", "a whole number"),
    case("text for a whole number", "--steps many", "max_steps", "'many'", "a whole number"),
    case("nothing for a whole number", "--set seed=", "seed", "None", "a whole number"),
    case("true for a whole number", "--seed true", "seed", "True", "a whole number"),
    case("mapping for a whole number", ("--set", "seed={a: 1}"), "seed", "a whole number"),
    case("text for true", ("--set", "strict='false'"), "strict", "'false'", "true or false"),
    case("text for true in a file", "--config word.yaml", "'false'", "true or false", "word.yaml"),
    case("0 for false", "--set gpt.bias=0", "gpt.bias", "0", "true or false"),
    case("text for a number", "--set learning_rate=fast", "learning_rate", "'fast'", "a number"),
    case("number for text", "--set name=5", "name", "5", "text or null"),
    case("text for a list", "--config names.yaml", "plugins", "a list of names", "'ulp-stats'"),
    case("numbers in a list of names", "--config not-names.yaml", "plugins", "list of names"),
    case("number for names", "--config left-out.yaml", "no_plugins", "list of names", "left-out"),
    case("no mapping of settings", "--config no-mapping.yaml", "gpt", "a mapping of settings"),
    case("nothing for settings", "--config nothing-below.yaml", "gpt", "a mapping of settings"),
    case(
        "settings of what is not active",
        "--set ulp-stats.interval=3",
        "ulp-stats",
        "diagnostic that is not active",
        "--plugin ulp-stats",
    ),
    case("no mapping", "--set original=3", "original: 3 is not a mapping", "--set"),
    case("nothing between commas", "--formats ,", "--formats ','", "names", command="compare"),
    case("nothing after a comma", "--formats E4M3,", "'E4M3,'", "names", command="compare"),
    case("no recipe", ("--formats", "E4M3", "--recipes", ""), "--recipes ''", command="compare"),
    case(
        "format beside formats",
        "--formats E4M3 --set format=E5M2",
        "format: ",
        "--formats",
        "given by --set",
        command="compare",
    ),
    case(
        "optimizer's setting",
        "--formats E4M3 --optimizers adamw:beta1=2",
        "--optimizers adamw:beta1=2",
        "must be < 1",
        command="compare",
    ),
    case("picture", "plot E4M3 --out x.png", "--out x.png", ".svg", command="formats"),
    case("no picture", ("compare", "E4M3", "--plot", ""), "--plot", ".svg", command="formats"),
    case("KEY without =", "--set seed", "--set seed", "KEY=VALUE is needed"),
    case("= without KEY", "--set =3", "--set =3", "KEY=VALUE is needed"),
    case("broken value", ("--set", "seed=[1"), "seed: not valid YAML", "--set"),
    case("CUDA that is absent", "--device cuda:99", "cuda:99 is not here", "cpu or auto"),
    case("a CUDA index that cannot be", "--device cuda:999999999999", "cuda:N"),
    case("left out but not active", "--no-plugin ulp-stats", "'ulp-stats'", "active are progress"),
]

TWICE = [
    case("flag", "--seed 1 --seed 2", "--seed is given twice"),
    case("flag and --set", "--seed 1 --set seed=1", "seed: given twice, by --seed and by --set"),
    case(
        "flag and --set of the key behind it", "--steps 3 --set max_steps=3", "max_steps", "twice"
    ),
    case("--set", "--set seed=1 --set seed=1", "seed", "twice"),
    case("short and long", "--set n_layer=1 --set gpt.n_layer=1", "gpt.n_layer", "twice"),
    case(
        "dotted and nested",
        ("--set", "gpt={n_layer: 1}", "--set", "settings.gpt.n_layer=1"),
        "gpt.n_layer",
        "twice",
    ),
    case("--data and --set", "--data words.txt --set gpt.data=words.txt", "gpt.data", "twice"),
    case("plugin", "--plugin ulp-stats --plugin ulp-stats", "ulp-stats is listed twice"),
    case(
        "plugin of a file",
        "--config flips.yaml --plugin flips",
        "flips is listed twice (given by --plugin)",
    ),
    case("--no-plugin", "--no-plugin progress --no-plugin progress", "'progress'", "twice"),
    case("--config", "--config real.yaml --config real.yaml", "--config is given twice"),
    case(
        "--format of a study",
        "--format E4M3 --format E5M2",
        "--format is given twice",
        command="explain",
    ),
    case(
        "--seeds", "--formats E4M3 --seeds 3 --seeds 4", "--seeds is given twice", command="compare"
    ),
    case(
        "setting of an optimizer",
        "--formats E4M3 --optimizers adamw:beta1=0.5:beta1=0.6",
        "--optimizers",
        "beta1 is given twice",
        command="compare",
    ),
    case("--out", "failure-report taken --out a --out b", "--out is given twice", command="report"),
    case(
        "--kind", "list --kind format --kind workload", "--kind is given twice", command="plugins"
    ),
    case(
        "--runs-dir", "list --runs-dir a --runs-dir b", "--runs-dir is given twice", command="runs"
    ),
    case("--resume", "--resume a --resume b", "--resume is given twice"),
    case("key in a file", "--config twice.yaml", "twice.yaml, line 3", "'seed'", "twice"),
    case("key below in a file", "--config twice-below.yaml", "line 4", "'size'", "twice"),
    case(
        "two forms in a file", "--config two-forms.yaml", "gpt.n_layer", "two-forms.yaml", "twice"
    ),
]

FILES_AND_NAMES = [
    case("data missing", "--data nowhere.txt", "gpt.data", "nowhere.txt does not exist", "--data"),
    case("data empty", "--data empty.txt", "gpt.data", "empty.txt is empty", "--data"),
    case("data too short", "--data short.txt", "short.txt", "tokens", "needs at least 129"),
    case("data, no path", ("--data", ""), "gpt.data", "empty"),
    case("config missing", "--config no.yaml", "config no.yaml", "cannot be read", "by --config"),
    case("config a folder", "--config .", "config .", "cannot be read", "by --config"),
    case("config broken", "--config broken.yaml", "broken.yaml, line 3", "YAML"),
    case("config with a tab", "--config tab.yaml", "tab.yaml, line 2", "YAML"),
    case("config a list", "--config list.yaml", "list.yaml", "a mapping"),
    case("config with code", "--config code.yaml", "code.yaml, line 1", "YAML"),
    case("config of two", "--config two-documents.yaml", "two-documents.yaml, line 2", "document"),
    case("recipe missing", "--recipe nowhere.yaml", "recipe nowhere.yaml: cannot be read",
         "--recipe"),
    case("recipe's name", "--recipe its-name.yaml", "name: 3", "line of text", "its-name.yaml"),
    case("recipe of a file missing", "--config its-recipe.yaml", "recipe nowhere.yaml",
         "cannot be read", "its-recipe.yaml"),
    case("recipes missing", "--formats E4M3 --recipes nowhere.yaml",
         "recipe nowhere.yaml: cannot be read", "--recipes", command="compare"),
    case("format of a study's file", "--config its-format.yaml", "E3M4?", "its-format.yaml",
         command="explain"),
    case("data to compare on", "compare E4M3 --on words.npy", "words.npy", "not a .npy file",
         command="formats"),
    case("empty data to compare on", "compare E4M3 --on empty.npy", "empty.npy", "numbers",
         command="formats"),
    case("runs in a file", "list --runs-dir empty.txt", "txt is not a folder", command="runs"),
    case("recipe broken", "--recipe broken.yaml", "broken.yaml, line 3", "YAML"),
    case("recipe matches nothing", "--recipe pattern.yaml", "'transfomer.*'", "pattern.yaml"),
    case("recipe's role", "--recipe role.yaml", "'wieght'", "did you mean weight?", "role.yaml"),
    case("recipe's role below", "--recipe role-below.yaml", "layers.*", "'wieght'", "weight?"),
    case("recipe's format", "--recipe format.yaml", "'E3M5x'", "E3M4?", "format.yaml"),
    case("recipe's scaling", "--recipe scaling.yaml", "weight.scaling", "'tensro'", "tensor?"),
    case("recipe's selector", "--recipe selector.yaml", "'<haed>'", "<head>?"),
    case("overflow that the format lacks",
         ("--set", "recipe={weight: {format: E3M4, overflow: inf}}"), "E3M4 has no inf code"),
    case("name that exists", "--name taken", "taken exists", "another name", "--resume taken"),
    *(
        case(f"name {name[:12]!r}", ("--name", name), "name: ", "is not a name", "letters")
        for name in ("../x", "/abs", "a/b", "..", ".", "", "a\0b", "a" * 300, "<script>", "a\nb",
                     "-x", "a b", "ä")
    ),
    case("resume nothing", "--resume nothing", "no run 'nothing'", "in runs"),
    case("resume, nearest", "--resume finished-rum", "'finished-rum'", "finished-run?"),
    case("resume outside", "--resume ../runs", "'../runs'", "is not a name"),
    case("resume with a format", "--resume taken --format E3M4", "--format cannot be given"),
    case("resume to an earlier step", "--resume finished-run --steps 1", "finished-run", "--steps"),
]  # fmt: skip

ALL = [*UNKNOWN, *VALUES, *TWICE, *FILES_AND_NAMES]


@pytest.fixture
def here(tmp_path, corpus, monkeypatch):
    """A folder with the files above, a run's folder that is taken, and one run's record."""
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        Path(name).write_text(text)
    Path("words.txt").write_bytes(corpus.read_bytes())
    Path("runs/taken/checkpoints/step-00000003").mkdir(parents=True)
    Path("runs/taken/notes.txt").touch()
    monkeypatch.setattr("altcore.engine.loop.Engine.train", lambda self: pytest.fail("it trains"))
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, corpus):
    """A run of one step, to be resumed."""
    from helpers import Starter

    runs = tmp_path_factory.mktemp("finished")
    Starter(runs, corpus)(name="finished-run", max_steps=1)
    return runs / "finished-run"


def tree(folder):
    """Return every path below a folder, with what it holds."""
    return {p: p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def check(outcome, given):
    """The line, and nothing but the line."""
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    if given.usage:
        assert outcome.message.startswith("Error: ")
        assert outcome.err.count("\n") <= 5
    else:
        # A slow machine says in between what it is doing.
        said = outcome.err.removeprefix(f"{READING}\n")
        assert said.count("\n") == 1, outcome.err
        assert outcome.message.startswith("altcore: ")
    for words in given.says:
        assert words in outcome.err
    assert "\0" not in outcome.err


@pytest.mark.parametrize("given", ALL, ids=lambda c: c.name)
def test_bad_input(given, here, finished, capsys):
    """Exit code 2, one line that names the thing and what would be right, and nothing written.

    With --debug the same line comes after a traceback.
    """
    if any("finished" in a for a in given.arguments):
        Path("runs/finished-run").symlink_to(finished)
    before = tree(here)
    arguments = [*given.command.split(), *given.arguments]
    outcome = call(capsys, *arguments)
    check(outcome, given)
    debugged = call(capsys, *arguments, "--debug")
    assert debugged.code == 2
    assert debugged.err.startswith("Traceback (most recent call last):\n")
    assert debugged.message == outcome.message
    assert tree(here) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_a_gpu_that_is_absent(device, here, capsys):
    """Asked for and not here is an error, never a quiet run on the CPU."""
    outcome = call(capsys, "train", "--device", device)
    check(outcome, case("", "", f"device: {device} is not here", "cpu or auto", "--device"))
    assert list(Path("runs").iterdir()) == [Path("runs/taken")]


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_is_no_format(name, here, capsys, monkeypatch):
    """One value, values out of order, NaN: named with the format, its distribution and version."""
    module = f"acme_{name.lower()}"
    text = f"from altcore import table_format\nX = table_format({name!r}, {TABLES[name]})\n"
    points = {"format": {name: f"{module}:X"}}
    distribution(here / "site", "acme-tables", points, version="2.0", **{module: text})
    monkeypatch.syspath_prepend(str(here / "site"))
    forget_installed()
    outcome = call(capsys, "train", "--format", name)
    forget_installed()
    reasons = {
        "ONE": "1 value(s): a format needs at least two",
        "UNORDERED": "value 2 (0.5) does not come after 1.0; give the values in ascending order",
        "EQUAL": "value 2 (1.0) does not come after 1.0",
        "NAN": "value 1 is nan; a table holds finite values only",
        "INFINITE": "value 1 is inf",
        "NEGATIVE": "no positive value",
    }
    check(outcome, case("", "", f"format {name}", "acme-tables 2.0", reasons[name], "--format"))
    assert list(Path("runs").iterdir()) == [Path("runs/taken")]


@pytest.mark.parametrize(
    "given",
    [c for c in ALL if c.name in ("format", "real in a file", "option", "name that exists")],
    ids=lambda c: c.name,
)
def test_bad_input_as_a_process(given, here):
    """What the shell sees is the same as above: exit code, one line, nothing written."""
    before = tree(here)
    outcome = run(*given.command.split(), *given.arguments, cwd=here)
    check(outcome, given)
    assert tree(here) == before


def test_runs_dir_that_is_a_file(here, capsys):
    """It is named, as every other thing that cannot be written to."""
    outcome = call(capsys, "train", "--set", "runs_dir=empty.txt")
    check(outcome, case("", "", "runs_dir", "empty.txt"))
    assert Path("empty.txt").read_text() == ""


def test_a_message_is_one_line(here, capsys):
    """A file's name or a plugin's error may hold line breaks; the message does not."""
    outcome = call(capsys, "train", "--config", "two\nlines.yaml")
    check(outcome, case("", "", "two lines.yaml", "cannot be read"))


@pytest.mark.parametrize(
    ("file", "line", "says"),
    [
        ("metrics.jsonl", '{"loss": 1.0}', "step is missing"),
        ("events.jsonl", '{"event": "end"}', "step is missing"),
        ("events.jsonl", '{"step": 3}', "event is missing"),
    ],
)
def test_a_record_that_no_run_writes(file, line, says, here, capsys):
    """Named by its file and the line; the other runs are listed all the same."""
    for name in ("sound", "taken"):
        Path("runs", name).mkdir(exist_ok=True)
        Path("runs", name, "config.yaml").write_text("max_steps: 3\n")
    Path("runs/taken", file).write_text(f"{line}\n")
    said = (f"runs/taken/{file}", line, says)
    for command in ("runs show taken", "report failure-report taken"):
        check(call(capsys, *command.split()), case("", "", *said))
    listed = call(capsys, "runs", "list")
    assert listed.code == 0
    assert all(words in listed.err for words in said)
    assert "sound" in listed.out


@pytest.mark.parametrize("file", ["metrics.jsonl", "timings.jsonl", "events.jsonl"])
def test_a_broken_record_hides_no_other_run(file, here, capsys):
    """Bytes that are no text, in the middle: its file and line are named, on standard error."""
    for name in ("sound", "taken"):
        Path("runs", name).mkdir(exist_ok=True)
        Path("runs", name, "config.yaml").write_text("max_steps: 3\n")
    start = b'{"step": 1, "event": "start"}\n'
    Path("runs/taken", file).write_bytes(start + b"\xff\n" + start)
    listed = call(capsys, "runs", "list", "--json")
    assert listed.code == 0
    assert {run["name"] for run in json.loads(listed.out)} >= {"sound", "taken"}
    if file != "timings.jsonl":
        assert f"runs/taken/{file}" in listed.err
        assert "[2]" in listed.err


QUESTION = {"command": "explain", "asked": {}, "seeds": [1], "within": 0.1, "steps": 9}
QUESTIONS = [
    json.dumps({"questions": [{**QUESTION, "arms": {}, **wrong}]})
    for wrong in ({"arms": [1]}, {"seeds": 1}, {"page": "../../page"})
]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"steps": "x"}', *QUESTIONS])
def test_a_folder_that_no_study_wrote(text, here, capsys):
    """A study goes on in its own folder only."""
    Path("studies/explain-e3m4-gpt").mkdir(parents=True)
    Path("studies/explain-e3m4-gpt/study.json").write_text(text)
    outcome = call(capsys, "explain", "--format", "E3M4", "--data", "words.txt")
    check(outcome, case("", "", "explain-e3m4-gpt/study.json", "another --name"))
