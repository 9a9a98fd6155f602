"""experiments/results.py: the runs of docs/results, each once, and their reports."""

import subprocess
from importlib import util

import pytest
from helpers_cli import ROOT, call

from altcore.runs import summary_of


@pytest.fixture
def script(monkeypatch):
    """The script as a module that starts nothing; what it would start is in ``asked``."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    spec = util.spec_from_file_location("results", ROOT / "experiments" / "results.py")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.asked = []
    monkeypatch.setattr(module, "execute", lambda command: module.asked.append(command[3:]))
    return module


def test_three_seeds_of_everything(script, tmp_path, capsys):
    """Five formats, two roundings; and two optimizers."""
    assert script.main(["--runs-dir", str(tmp_path), "--only", "train"]) == 0
    names = [asked[asked.index("--name") + 1] for asked in script.asked]
    kinds = [f"{f}-{r}" for r in script.RECIPES for f in ("E0M7", "E1M6", "E3M4", "E5M2", "E7M0")]
    kinds += ["E5M2-standard", "E5M2-manifold"]
    assert names == [f"{kind}-s{seed}" for kind in kinds for seed in (42, 43, 44)]


def test_a_finished_run_is_kept_and_a_cut_one_goes_on(script, start, capsys):
    """So that the script can be started again."""
    names = [name for name, _ in script.runs()][:2]
    paths = [start(name=name).run_directory for name in names]
    (paths[1] / "summary.json").unlink()
    lines = (paths[1] / "events.jsonl").read_text().splitlines()
    (paths[1] / "events.jsonl").write_text("\n".join(x for x in lines if '"end"' not in x) + "\n")
    assert script.main(["--runs-dir", str(start.runs), "--only", "train"]) == 0
    assert len(script.asked) == 35
    assert script.asked[0][:3] == ["train", "--resume", names[1]]


def test_the_reports_are_a_command_each(script, tmp_path, capsys):
    """On all runs of the folder; the first that fails ends it."""
    given = ["--runs-dir", str(tmp_path), "--out", "there", "--only", "report"]
    assert script.main(given) == 0
    reporters = ("format-comparison", "failure-modes", "manifold-comparison", "page")
    source = ["--from", str(tmp_path), "--out", "there"]
    assert script.asked == [["report", reporter, *source] for reporter in reporters]
    script.execute = lambda command: 3
    assert script.main(given) == 3


@pytest.mark.parametrize("name", ["E7M0-stochastic-s43", "E5M2-manifold-s44"])
def test_its_runs_are_accepted(script, start, corpus, capsys, name):
    """Of each kind one, for a step."""
    given = list(dict(script.runs())[name])
    if "--steps" in given:
        given[given.index("--steps") + 1] = "1"
    else:
        given += ["--steps", "1"]
    given += ["--data", str(corpus), "--set", "eval_steps=1"]
    sets = ["--set", f"runs_dir={start.runs}", "--set", "eval_interval=0"]
    done = call(capsys, "train", "--name", name, *given, *sets)
    assert done.code == 0, done.err
    summary = summary_of(start.runs / name)
    fmt, kind, seed = name.split("-")
    assert (summary["format"], f"s{summary['seed']}", summary["steps"]) == (fmt, seed, 1)
    assert summary["optimizer"] == ("manifold-adamw" if kind == "manifold" else "adamw")


def test_make_has_the_target():
    """With the folder of the runs as an argument."""
    done = subprocess.run(
        ["make", "-n", "-o", "venv", "results", "RUNS=x"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "experiments/results.py --runs-dir x" in done.stdout
