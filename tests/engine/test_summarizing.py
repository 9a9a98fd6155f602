"""What a summary says of a run, whatever of it was recorded."""

import json
import time

import pytest
import torch
from attrs import define
from helpers_epochs import Points
from planted import plant

from altcore import hookimpl, setting
from altcore.errors import PluginError
from altcore.runs import read_lines, summary_of

OWN = {"workload": "regression", "compute": "float32", "eval_steps": 4}


@pytest.fixture
def regression(shelf):
    """A workload whose facts state no entropy."""
    plant(shelf, "regression")


@define(eq=False)
class Fails:
    """Multiplies the weights after one step, and fails in a later one."""

    wrecks: int = setting(0, help="the step")
    fails: int = setting(0, help="the step")

    @hookimpl
    @torch.no_grad()
    def post_step(self, run, step):
        if step.index == self.wrecks:
            for parameter in run.model.parameters():
                parameter.mul_(30)

    @hookimpl
    def pre_step(self, run, step):
        if step.index == self.fails:
            raise RuntimeError("planted")


def test_the_verdict_does_not_depend_on_what_is_recorded(regression, start):
    """A run that is evaluated once is compared with what it was before its first step."""
    runs = [start(**OWN, max_steps=40, learning_rate=0.02, log_interval=n) for n in (1, 10, 60)]
    assert {run.verdict for run in runs} == {"learned, still improving at the end"}
    assert {run.summary["first_evaluation"]["step"] for run in runs} == {0}
    assert len({run.summary["first_evaluation"]["val_loss"] for run in runs}) == 1


def test_a_run_that_cannot_learn_did_not(regression, start):
    """Batches differ, and each comparison with one that was a hard one would say otherwise."""
    runs = [start(**OWN, max_steps=2, learning_rate=1e-12, seed=seed) for seed in range(8)]
    assert {run.verdict for run in runs} == {"did not learn"}


def test_where_it_began_is_known_after_a_resume(regression, start):
    """And is not measured again."""
    whole = start(**OWN, name="r", max_steps=3)
    resumed = start.resume("r", max_steps=5)
    first = whole.summary["first_evaluation"]
    assert resumed.summary["first_evaluation"] == first
    assert first["step"] == 0
    assert "val_loss" in first


def test_with_an_entropy_nothing_is_evaluated_before_the_first_step(start):
    """The data say what must be reached."""
    run = start(max_steps=4, eval_interval=2)
    assert run.summary["first_evaluation"]["step"] == 2


@pytest.mark.parametrize("log_interval", [1, 50])
@pytest.mark.parametrize(("wrecks", "line"), [(0, "learned by step 30"), (31, "did not learn; ")])
def test_an_evaluation_long_before_an_error_is_named(
    regression, shelf, start, wrecks, line, log_interval
):
    """Unless the training loss since, recorded or not, says that it holds no more."""
    shelf.install("intervention", "fails", Fails)
    given = {"fails.wrecks": wrecks, "fails.fails": 38, "eval_interval": 30}
    given |= {"learning_rate": 0.02, "log_interval": log_interval}
    with pytest.raises(PluginError, match="planted"):
        start(["fails"], name="r", max_steps=60, **OWN, **given)
    summary = json.loads((start.runs / "r/summary.json").read_text())
    assert summary["verdict"].startswith(line)
    assert summary["verdict"].endswith("; failed at step 38")
    assert summary["learned"] is (wrecks == 0)


# ------------------------------------------------------------------------- losses, time, items


def test_the_last_step_is_recorded(start):
    """Whatever the interval: it is where the run ended."""
    run = start(max_steps=5, log_interval=2)
    assert [line["step"] for line in run.metrics_history] == [2, 4, 5]
    assert run.summary["final_loss_step"] == 5


def test_losses_are_those_of_all_steps(regression, shelf, start):
    """Of a run that ends between two recorded ones, too."""
    shelf.install("intervention", "fails", Fails)
    every = start(**OWN, max_steps=12, checkpoint_interval=4).metrics_history
    lowest = min((line["loss"], line["step"]) for line in every[:9])
    keys = {"fails.fails": 10, "checkpoint_interval": 4, "log_interval": 50}
    with pytest.raises(PluginError, match="planted"):
        start(["fails"], name="r", max_steps=12, **OWN, **keys)
    ended = summary_of(start.runs / "r")
    assert (ended["final_loss"], ended["final_loss_step"]) == (every[8]["loss"], 9)
    assert (ended["best_loss"], ended["best_loss_step"]) == lowest


def test_items_and_times_are_those_of_all_steps(shelf, start):
    """20 numbers in batches of three: the last has two. One line of timings is of all of them."""
    shelf.install("workload", "points", Points)
    keys = {"workload": "points", "points.batch_size": 3, "compute": "float32"}
    run = start(**keys, max_steps=7, log_interval=50)
    (line,) = read_lines(run.run_directory / "timings.jsonl")
    assert (line["training_steps"], line["training_items"]) == (7, 20)
    assert line["items_per_second"] == pytest.approx(2 / line["step_time_ms"] * 1e3)
    spent = line["training_seconds"]
    assert run.summary["step_time_ms"] == pytest.approx(1e3 * spent / 7)
    assert run.summary["items_per_second"] == pytest.approx(20 / spent)
    assert line["step_time_ms"] / 1e3 < spent < line["elapsed_seconds"]


def test_a_resumed_run_counts_on(shelf, start):
    """From the last line that is kept."""
    shelf.install("workload", "points", Points)
    start(workload="points", compute="float32", name="r", max_steps=4)
    run = start.resume("r", max_steps=6)
    lines = read_lines(run.run_directory / "timings.jsonl")
    assert [line["training_items"] for line in lines] == [2, 4, 6, 8, 10, 12]
    assert run.summary["step_time_ms"] == pytest.approx(1e3 * lines[-1]["training_seconds"] / 6)


def test_a_line_whose_times_are_damaged_ends_no_run(shelf, start):
    """A key that is another: the times are those of the line before."""
    shelf.install("workload", "points", Points)
    done = start(workload="points", compute="float32", name="r", max_steps=4)
    path = done.run_directory / "timings.jsonl"
    *lines, last = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, last.replace("elapsed_seconds", "elapsed_seaonds")]))
    start.resume("r", max_steps=6)
    assert [line["step"] for line in read_lines(path)] == [1, 2, 3, 4, 5, 6]
    assert read_lines(path)[-1]["training_items"] == 10


def test_a_clock_that_stands_still_ends_no_run(shelf, start, monkeypatch):
    """As under a plugin that freezes the time: the throughput is not known."""
    shelf.install("workload", "points", Points)
    for name in ("time", "monotonic", "perf_counter"):
        monkeypatch.setattr(time, name, lambda: 0.0)
    run = start(workload="points", compute="float32", max_steps=3)
    assert run.summary["status"] == "finished"
    assert run.summary["items_per_second"] is None
