"""What the jobs that are left will take, by what was measured."""

import json

import pytest
from helpers_cli import call
from helpers_sweeps import complete, fail, ledger_of

from altcore.sweep import estimate_of, keep_checked

VARIANTS = {"variants": {"base": {}, "pure": {"recipe": "pure", "format": "E5M2"}}, "seeds": 2}


def test_by_completed_runs(tmp_path):
    """Of each variant; without one nothing is said of the time."""
    ledger = ledger_of(tmp_path, **VARIANTS)
    one, _, other, _ = jobs = ledger.jobs()
    complete(ledger, one, seconds=10.0)
    found = estimate_of(ledger, jobs)
    assert (found.left, found.seconds, found.unmeasured) == (3, None, ["pure"])
    assert found.memory == {"peak_memory_bytes": 4e8}
    complete(ledger, other, seconds=30.0)
    found = estimate_of(ledger, jobs)
    assert (found.left, found.seconds, found.source) == (2, 40.0, "2 runs")


def test_by_the_steps_of_a_check(tmp_path):
    """Before anything ran; a file that is no check's says nothing."""
    ledger = ledger_of(tmp_path, **VARIANTS)
    jobs = ledger.jobs()
    keep_checked(ledger, {"base": {"seconds": 5.0, "peak_memory_bytes": 1e9}})
    keep_checked(ledger, {"pure": {"seconds": 7.0, "peak_gpu_memory_bytes": 2e9}})
    found = estimate_of(ledger, jobs)
    assert (found.seconds, found.source) == (24.0, "the steps of a check")
    assert found.memory == {"peak_memory_bytes": 1e9, "peak_gpu_memory_bytes": 2e9}
    (ledger.folder / "check.json").write_text("[")
    assert estimate_of(ledger, jobs).seconds is None


@pytest.mark.parametrize("key", ["max_steps", "epochs"])
def test_longer_jobs_of_a_variant_take_longer(tmp_path, key):
    """A check is of the first; without one, and once there are runs, they are in proportion."""
    base = {"gpt.size": "tiny"} if key == "max_steps" else {"workload": "resnet18-cifar"}
    ledger = ledger_of(tmp_path, grid={key: [20, 400]}, base=base)
    jobs = sorted(ledger.jobs(), key=lambda job: job.config[key])
    keep_checked(ledger, {"base": {"seconds": 5.0, "length": 20.0, "length_seconds": 0.125}})
    assert estimate_of(ledger, jobs).seconds == 5 + 5 + 380 * 0.125
    complete(ledger, jobs[0], seconds=2.0)
    assert estimate_of(ledger, jobs).seconds == 40


@pytest.mark.parametrize(
    ("told", "where"),
    [
        ({"device": "cpu", "processor": "Acme 9000", "threads": 2}, "Acme 9000, 2 threads"),
        ({"device": "NVIDIA H100", "processor": "Acme 9000", "threads": 2}, "NVIDIA H100"),
    ],
)
def test_the_hardware_is_named(tmp_path, capsys, told, where):
    """By the run of each variant, or by the check."""
    ledger = ledger_of(tmp_path, seeds=2)
    keep_checked(ledger, {"base": {"seconds": 9.0, "hardware": "a laptop"}})
    assert estimate_of(ledger, ledger.jobs()).hardware == ["a laptop"]
    complete(ledger, ledger.jobs()[0])
    (ledger.run_of("base-seed42") / "environment.json").write_text(json.dumps(told))
    assert estimate_of(ledger, ledger.jobs()).hardware == [where]
    done = call(capsys, "sweep", "plan", "toy", "--sweeps-dir", tmp_path)
    assert f"(measured: 1 run on {where})" in done.err.replace("\n", " ")


def test_the_command_says_it(tmp_path, capsys):
    """And that nothing is left when all is done."""
    ledger = ledger_of(tmp_path)
    keep_checked(ledger, {"base": {"seconds": 60.0, "peak_memory_bytes": 1e9}})
    file = tmp_path / "toy.yaml"
    file.write_text("base: {gpt.size: tiny, max_steps: 6}\n")
    done = call(capsys, "sweep", "plan", file, "--sweeps-dir", tmp_path)
    assert done.err.splitlines()[1] == (
        "1 left take 60 s, one after another; a worker takes 1.00 GB of memory "
        "(measured: the steps of a check)"
    )
    complete(ledger, ledger.jobs()[0])
    assert (
        "every job has a result"
        in call(capsys, "sweep", "plan", file, "--sweeps-dir", tmp_path).err
    )


def test_the_command_names_what_is_not_measured(tmp_path, capsys):
    """Jobs in the order in which they begin; a failed one is not left, and is told."""
    ledger = ledger_of(tmp_path, **VARIANTS, priority={"pure": 1})

    def plan(*more):
        return call(capsys, "sweep", "plan", "toy", "--sweeps-dir", tmp_path, *more)

    pure, _, base, other = ledger.jobs()
    assert plan().out.split()[:2] == [pure.name, "pure-seed43"]
    complete(ledger, pure, seconds=10.0)
    fail(ledger, base, "ValueError: no")
    assert plan().err.splitlines()[1] == (
        "the time of base is unknown: altcore sweep check measures a few steps; a worker takes "
        "0.40 GB of memory (measured: 1 run); 1 failed: altcore sweep retry tries again"
    )
    complete(ledger, other)
    complete(ledger, ledger.job("pure-seed43"))
    assert "no job is left; 1 failed: altcore" in plan().err


@pytest.mark.parametrize("command", ["plan", "check"])
def test_the_executor_is_checked(tmp_path, capsys, command):
    done = call(capsys, "sweep", command, "--name", "x", "--executor", "local:2x")
    assert done.code == 2
    assert "local.slots: " in done.err
