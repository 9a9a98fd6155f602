"""The original experiments: their files, each run as it is, and the script for all of them."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from importlib import util

import pytest
from helpers import events
from helpers_cli import ROOT, call
from helpers_configs import CONFIGS, NAMES, held, path

from altcore.config import load_config
from altcore.errors import Source
from altcore.runs import summary_of
from altcore.yaml_files import load_yaml

SHORT = {
    "n_layer": 6,
    "n_head": 6,
    "n_embd": 384,
    "block_size": 256,
    "vocab_size": 50257,
    "dropout": 0.0,
    "batch_size": 12,
    "learning_rate": 6e-4,
    "max_steps": 500,
    "warmup_steps": 100,
    "grad_clip": 1.0,
    "use_fp8": True,
    "use_shadow": True,
    "checkpoint_interval": 100,
    "max_checkpoints": 3,
    "nan_patience": 3,
    "bit_stall_threshold": 0.5,
    "overflow_threshold": 0.01,
    "dead_neuron_threshold": 1.0e-8,
    "dead_neuron_window": 100,
    "log_interval": 1,
    "eval_interval": 100,
    "project": "altgrad",
    "seed": 42,
}
"""What e5m2_short and the four uniform files have in common."""
OWN = {
    "e5m2_short": ("E5M2", "e5m2-short-baseline", "fp8 e5m2 eurlex format-test baseline short"),
    **{
        f"{f}_uniform": (f.upper(), f"{f}-uniform", f"fp8 {f} eurlex format-test uniform")
        for f in ("e0m7", "e1m6", "e3m4", "e7m0")
    },
}
TINY = {
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 16,
    "block_size": 8,
    "batch_size": 2,
    "eval_steps": 1,
    "device": "cpu",
}


# -------------------------------------------------------------------------------- the files


def test_there_are_the_nine():
    """No other file, and none less."""
    assert {p.name for p in CONFIGS.iterdir()} == {f"{n}.yaml" for n in NAMES}


@pytest.mark.parametrize("name", OWN)
def test_short_files_are_equal_but_for_the_format_and_its_names(name):
    """Runs of different formats differ in nothing else: only then can they be compared."""
    fmt, run, tags = OWN[name]
    found = held(name)
    own = {k: found.pop(k) for k in ("fp8_format", "checkpoint_dir", "run_name", "tags")}
    assert found == SHORT
    assert (own["fp8_format"], own["run_name"], own["tags"]) == (fmt, run, tags.split())
    assert len({held(n)["checkpoint_dir"] for n in OWN}) == len(OWN)


def test_what_the_other_files_hold():
    """Longer ones, and the two that differ in the optimizer."""
    others = {n: held(n) for n in NAMES if n not in OWN}
    assert {n: (f["max_steps"], f["use_fp8"]) for n, f in others.items()} == {
        "bf16_baseline": (2000, False),
        "e5m2_fp8": (2000, True),
        "e5m2_standard": (500, True),
        "e5m2_manifold": (500, True),
    }
    assert {f["nan_patience"] for f in others.values()} == {10}
    assert {held(n)["seed"] for n in NAMES} == {42}
    standard, manifold = others["e5m2_standard"], others["e5m2_manifold"]
    assert (standard["use_manifold_aware"], manifold["use_manifold_aware"]) == (False, True)
    assert "log_bit_position" in standard.keys() & manifold.keys()
    assert manifold["manifold_mantissa_bits"] == 2
    assert manifold["manifold_max_stiffness"] == 1e6


@pytest.mark.parametrize("name", NAMES)
def test_a_file_says_what_is_expected(name):
    """In the comment that it opens with."""
    comment = re.match(r"(#.*\n)+", path(name).read_text()).group().replace("\n# ", " ")
    assert "Expected: " in comment
    words = {
        "e0m7_uniform": "narrow range",
        "e1m6_uniform": "overflow in attention",
        "e3m4_uniform": "similar to E5M2",
        "e7m0_uniform": "near-100 % bit-stall",
    }
    assert words.get(name, "") in comment


# -------------------------------------------------------------------------------- they run


@pytest.mark.parametrize("name", NAMES)
def test_each_runs(name, tmp_path, corpus, capsys):
    """Two steps at a tiny size through the command, every diagnostic measuring in each."""
    runs = tmp_path / "runs"
    sets = {**TINY, "runs_dir": runs, "diagnostic_interval": 1, "data": corpus}
    arguments = [a for k, v in sets.items() for a in ("--set", f"{k}={v}")]
    base = ["train", "--config", path(name), "--preset", "format-experiment", "--steps", "2"]
    done = call(capsys, *base, *arguments)
    assert done.code == 0, done.err
    run = runs / held(name)["run_name"]
    assert run.is_dir()
    lines = [load_yaml(x, Source("x")) for x in (run / "metrics.jsonl").open()]
    measured = {k.partition("/")[0] for k in lines[-2] if "/" in k}
    quantized = {"stiffness", "grid-alignment", "ulp-stats", "shadow"}
    expected = {"grad-stats", "mantissa-shift"} | (quantized if held(name)["use_fp8"] else set())
    assert expected <= measured
    assert not events(run, "degraded")
    assert "checkpoint_dir not used: checkpoints are in the run's own directory" in done.err
    assert done.err.count("gpt.vocab_size 50257 is a BPE vocabulary") == 1
    if held(name)["use_fp8"]:
        assert lines[-2]["view_stall_rate"] is not None
        assert lines[-2]["stored_stall_rate"] is None


def test_a_label_names_runs_and_a_second_one_gets_a_number(start):
    """Unlike a name, which must be new; whatever the label holds, the run is in its folder."""
    first, second = (start(label="e0m7-uniform").run_directory for _ in range(2))
    assert [first.name, second.name] == ["e0m7-uniform", "e0m7-uniform-2"]
    odd = start(label="../my run: 3/4").run_directory
    assert odd.name == "my-run-3-4"
    assert odd.parent == start.runs
    assert start(label="...", format="E3M4").run_directory.name == "e3m4-master"
    assert start(label="x", name="named").run_directory.name == "named"
    again = load_config(first / "config.yaml")
    assert (again.label, again.name) == ("e0m7-uniform", None)


# --------------------------------------------------------------------------- all in a row


@pytest.fixture
def script(tmp_path, monkeypatch, capsys):
    """experiments/run.py as a module, whose runs are in this process and in ``tmp_path``."""
    spec = util.spec_from_file_location("experiments_run", ROOT / "experiments" / "run.py")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)
    asked = []

    def execute(command):
        asked.append(command[3:])
        return call(capsys, *command[3:]).code

    module.really_execute = module.execute
    monkeypatch.setattr(module, "execute", execute)
    module.asked = asked
    return module


SETS = [a for k, v in TINY.items() if k != "device" for a in ("--set", f"{k}={v}")]


def test_the_script_runs_skips_and_goes_on(script, tmp_path, corpus, capsys):
    """What is finished is skipped, what was cut short is resumed, what left nothing begins anew."""
    given = ["--only", "e7m0_uniform", "e3m4_uniform", "--steps", "3", "--device", "cpu"]
    given += ["--data", str(corpus), *SETS, "--set", "checkpoint_interval=1"]
    assert script.main(given) == 0
    runs = tmp_path / "runs"
    one, two = (runs / f"{n}-uniform-3-steps" for n in ("e7m0", "e3m4"))
    report = (runs / "format-experiments-3-steps.md").read_text()
    for done, fmt in ((one, "E7M0"), (two, "E3M4")):
        assert f"| {done.name} | {fmt} | {summary_of(done)['verdict']} | 3 |" in report
    assert all("--preset" in a for a in script.asked)

    # As if the first had been killed after its second step, and the second before any.
    keep = [x for x in (one / "events.jsonl").open() if '"event": "end"' not in x]
    (one / "events.jsonl").write_text("".join(keep))
    (one / "summary.json").unlink()
    for cut in (*(one / "checkpoints").glob("step-*3"), *(two / "checkpoints").glob("step-*")):
        shutil.rmtree(cut)
    script.asked.clear()
    assert script.main(given) == 0
    assert script.asked[0][:3] == ["train", "--resume", one.name]
    assert "--resume" not in script.asked[1]
    assert (runs / f"{two.name}-cut-1").is_dir()
    assert [e["event"] for e in events(one, "resume", "end")] == ["resume", "end"]

    script.asked.clear()
    capsys.readouterr()
    assert script.main(given) == 0
    assert not script.asked
    assert f"{one.name} is done\n{two.name} is done" in capsys.readouterr().out


def test_the_script_does_not_mix_data(script, corpus, capsys):
    """Runs on different data cannot be compared."""
    given = ["--only", "e7m0_uniform", "--steps", "1", "--device", "cpu", *SETS]
    assert script.main([*given, "--data", str(corpus)]) == 0
    assert script.main(given) == 2
    assert "give the same data, or another --runs-dir" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "leaves", "calls"), [(1, 1, 2), (2, 1, 2), (130, 130, 1), (143, 143, 1), (-9, 137, 1)]
)
def test_a_run_that_fails_leaves_the_others_their_turn(script, monkeypatch, code, leaves, calls):
    """Who interrupts one run means them all."""
    asked = []

    def execute(command):
        asked.append(command)
        return code

    monkeypatch.setattr(script, "execute", execute)
    assert script.main(["--only", "e7m0_uniform", "e3m4_uniform"]) == leaves
    assert len(asked) == calls


@pytest.mark.parametrize(
    ("number", "passed"), [(signal.SIGTERM, True), (signal.SIGUSR1, True), (signal.SIGINT, False)]
)
def test_a_run_that_is_asked_to_leave_is_waited_for(script, tmp_path, number, passed):
    """It writes a checkpoint first; Ctrl-C comes to it from the terminal."""
    code = f"""
import signal, sys, time
from pathlib import Path
def leave(number, _):
    time.sleep(0.5)
    Path("left").touch()
    sys.exit(128 + number)
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(number, leave)
Path("ready").touch()
time.sleep({20 if passed else 1})
"""

    def ask():
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    threading.Thread(target=ask).start()
    found = script.really_execute([sys.executable, "-c", code])
    assert found == 128 + number
    assert (tmp_path / "left").exists() == passed
    assert signal.getsignal(number) is before


def test_the_script_knows_all_of_them(script):
    """In an order that has each once."""
    assert sorted(script.ORDER) == sorted(NAMES)
    assert script.name_of("e5m2_short", None) == "e5m2-short-baseline"
    assert script.name_of("e5m2_short", 2) == "e5m2-short-baseline-2-steps"


def test_make_has_the_target():
    """With the device, the data and the steps as arguments."""
    done = subprocess.run(
        ["make", "-n", "-o", "venv", "format-experiments", "DEVICE=cuda", "DATA=x", "STEPS=2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "experiments/run.py --device cuda --data x --steps 2" in done.stdout
