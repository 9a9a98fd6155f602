"""Signals while a run evaluates: it leaves between two batches, and evaluates when it goes on."""

import signal

import pytest
from helpers import checkpoints, events, metrics_bytes, weights_sha256
from helpers_plugins import make
from planted import BuiltRegression, Regression, plant
from structlog.testing import capture_logs

import altcore
from altcore.engine.ending import Ending
from altcore.errors import Interrupted


@pytest.mark.parametrize("last", [2, 4], ids=["in the middle", "at the end"])
def test_an_evaluation_that_is_left_is_made_when_the_run_goes_on(start, monkeypatch, last):
    """It ends with the record that it has without the signal."""
    from altcore_workloads.gpt import BuiltGpt

    own, seen = BuiltGpt.batch, []

    def batch(self, split, step, micro):
        seen.append(split)
        if split == "val" and step == 1 and number:
            signal.raise_signal(signal.SIGTERM)
        return own(self, split, step, micro)

    monkeypatch.setattr(BuiltGpt, "batch", batch)
    keys = {"max_steps": 4, "eval_interval": last, "eval_steps": 5}
    number = 0
    plain = start(name="plain", **keys)
    number, seen[:] = signal.SIGTERM, []
    with pytest.raises(Interrupted, match="SIGTERM: left after a checkpoint"):
        start(name="r", **keys)
    assert seen[-2:] == ["val", "val"], "two of the five batches"
    assert checkpoints(start.runs / "r")[-1] == f"step-{last:08d}"
    number = 0
    again = start.resume("r")
    assert again.summary["status"] == "finished"
    assert metrics_bytes(again.run_directory) == metrics_bytes(plain.run_directory)
    assert weights_sha256(again.run_directory) == weights_sha256(plain.run_directory)
    assert again.summary["evaluation"] == plain.summary["evaluation"]
    assert [e["status"] for e in events(again.run_directory, "end")][-1] == "finished"


def test_a_signal_before_the_first_step_leaves_the_run_as_new(shelf, start):
    """The checkpoint of step 0 is enough to go on from."""

    def ask(self):
        signal.raise_signal(signal.SIGUSR2)

    shelf.install("reporter", "asks", make({"run_start": ask}))
    plain = start(name="plain")
    with pytest.raises(Interrupted) as caught:
        start(["asks"], name="r")
    assert caught.value.exit_code == 140
    assert events(start.runs / "r", "end")[0]["status"] == "interrupted"
    shelf.monkeypatch.setattr("signal.raise_signal", lambda number: None)
    again = start.resume("r")
    assert weights_sha256(again.run_directory) == weights_sha256(plain.run_directory)


def test_workers_that_a_signal_ended_fail_no_run(start, monkeypatch):
    """The signal is why they are gone; another is told of while the run ends."""
    from altcore_workloads.gpt import BuiltGpt

    own, ending = BuiltGpt.batch, Ending.write

    def batch(self, split, step, micro):
        if step == 2:
            signal.raise_signal(signal.SIGTERM)
            raise RuntimeError("worker 1 is killed by a signal")
        return own(self, split, step, micro)

    def write(self, **given):
        ending(self, **given)
        raise RuntimeError("worker 2 is killed by a signal")

    monkeypatch.setattr(BuiltGpt, "batch", batch)
    monkeypatch.setattr(Ending, "write", write)
    with pytest.raises(Interrupted, match=r"SIGTERM: left without .* worker") as caught:
        start(name="r")
    assert caught.value.exit_code == 143
    (end,) = events(start.runs / "r", "end")
    assert end["status"] == "interrupted"
    assert "worker 1 is killed by a signal" in end["error"]


@pytest.mark.parametrize("whose", ["workload", "data", "loss", "model"])
def test_whoever_sets_a_handler_the_run_hears_signals(shelf, start, whose):
    """Libraries of data and of tracking do: the run would end without a checkpoint."""
    plant(shelf, "regression")
    config = start.config(workload="regression", max_steps=5, name="r")
    workload = Regression().build(0, "cpu")
    names = {"workload": "workload regression", "data": "the function data"}
    names["loss"] = "the function loss"

    def deaf(function):
        def changed(*given, **keys):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            return function(*given, **keys)

        return changed

    def ask(self, step):
        if step.index == 3:
            signal.raise_signal(signal.SIGTERM)

    shelf.install("reporter", "asks", make({"pre_step": ask}))
    given = {}
    if whose == "workload":
        shelf.monkeypatch.setattr(BuiltRegression, "batch", deaf(BuiltRegression.batch))
    elif whose == "model":
        given["model"] = workload.model
        workload.model.forward = deaf(workload.model.forward)
    else:
        given[whose] = deaf(workload.batch if whose == "data" else workload.loss)
    before = signal.getsignal(signal.SIGTERM)
    with capture_logs() as logs, pytest.raises(Interrupted, match="SIGTERM: left after a check"):
        altcore.train(config.evolve(plugins=("asks",)), **given)
    told = [x["event"] for x in logs if "changed the handler of SIGTERM in " in x["event"]]
    assert all(line.startswith(names.get(whose, names["workload"])) for line in told)
    assert told[-1].endswith(": it is put back")
    assert checkpoints(start.runs / "r")[-1] == "step-00000003"
    assert signal.getsignal(signal.SIGTERM) == before
