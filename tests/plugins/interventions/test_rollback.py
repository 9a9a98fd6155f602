"""The intervention ``rollback``: when it goes back, how often, and what it changes then."""

import json
from types import SimpleNamespace

import pytest
from helpers import events
from planted import check_resumes_alike, last_loss, plant

import altcore
from altcore.engine import Step
from altcore.hooks import NonFinite, build
from altcore_interventions.rollback import RollbackOnFailure

LOSS = NonFinite("loss", "a", "weight@fwd")


class Bench:
    """A plugin and a run with snapshots at some steps."""

    def __init__(self, snapshots=(0, 10, 20), finite=True, weight="E4M3", **settings):
        self.plugin = build(RollbackOnFailure, settings, "rollback")
        self.events = []
        self.run = SimpleNamespace(
            config=SimpleNamespace(nan_patience=10, snapshot_interval=10, max_snapshots=5),
            snapshots=[SimpleNamespace(step=s, is_finite=lambda: finite) for s in snapshots],
            emit=lambda event, **data: self.events.append(data["message"]),
            step=0,
            quantization=SimpleNamespace(plan={"a": {"weight@fwd": weight}}),
        )

    def nan(self, step, where=LOSS, loss_scale=1.0):
        self.run.step = step
        return self.plugin.on_nan(self.run, Step(step, loss_scale=loss_scale), where)

    def collapse(self, step, cause):
        self.run.step = step
        return self.plugin.on_collapse(self.run, {"cause": cause, "reason": "it grew"})

    def carried_out(self, plugin="rollback"):
        self.plugin.on_event({"event": "rollback", "plugin": plugin})


def test_goes_back_when_patience_is_spent():
    """The third consecutive step that is not finite, not the third in all."""
    bench = Bench()
    assert [bench.nan(s) for s in (21, 22, 24, 25)] == [None] * 4
    action = bench.nan(26)
    assert (type(action), action.steps, action.then) == (altcore.Rollback, 10, None)
    assert "3 consecutive steps were not finite: loss is nan, first met in a" in action.reason
    assert "attempt 1 of 3" in action.reason


def test_goes_back_when_the_loss_has_diverged():
    """Unless it is told not to; other collapses are no case for it."""
    bench = Bench()
    assert "it grew" in bench.collapse(30, "diverged").reason
    assert bench.collapse(30, "stalled") is None
    assert Bench(on_diverged=False).collapse(30, "diverged") is None


def test_attempts_are_capped_and_only_those_count_that_were_carried_out():
    """A proposal that was refused, and another plugin's rollback, cost nothing."""
    bench = Bench(nan_patience=1, most_attempts=2)
    for step in (21, 22, 23):
        assert "attempt 1 of 2" in bench.nan(step).reason
    bench.carried_out("other")
    bench.carried_out()
    assert "attempt 2 of 2" in bench.nan(24).reason
    bench.carried_out()
    assert bench.nan(25) is None


def test_the_cap_survives_a_checkpoint():
    """The state is plain data."""
    bench, other = Bench(nan_patience=2, most_attempts=1), Bench(nan_patience=2, most_attempts=1)
    bench.nan(21)
    other.plugin.load_state_dict(json.loads(json.dumps(bench.plugin.state_dict())))
    assert other.nan(22) is not None
    other.carried_out()
    bench.plugin.load_state_dict(other.plugin.state_dict())
    assert [bench.nan(s) for s in (23, 24, 25)] == [None] * 3


@pytest.mark.parametrize(("snapshots", "finite"), [((15, 20), True), ((0, 10), False), ((), True)])
def test_no_snapshot_to_go_back_to_is_said(snapshots, finite):
    """Too young, not finite, or none: the engine would fail, so nothing is proposed."""
    bench = Bench(snapshots, finite, nan_patience=1)
    assert bench.nan(21) is None
    assert bench.events == ["rollback: no finite snapshot is 10 steps old"]


def test_a_gradient_lost_under_a_loss_scale_is_not_counted():
    """It is the scale's business; at a scale of 1, or with a lost loss, it is not."""
    bench = Bench(nan_patience=1)
    gradient = NonFinite("gradient", "a.weight")
    assert bench.nan(21, gradient, loss_scale=1024.0) is None
    assert bench.nan(22, LOSS, loss_scale=1024.0) is not None
    assert bench.nan(23, gradient) is not None


def test_then():
    """A format or a factor of the learning rate, with a reason; not both."""
    action = Bench(nan_patience=1, format="E5M2").nan(21)
    assert action.then.format is altcore.get_format("E5M2")
    assert action.then.reason == "rolled back, on to E5M2"
    action = Bench(nan_patience=1, learning_rate_factor=0.5).nan(21)
    assert action.then.factor == 0.5
    with pytest.raises(altcore.BadInput, match="rollback: give a format or"):
        Bench(format="E5M2", learning_rate_factor=0.5)


def test_warns_of_a_format_that_nothing_takes():
    """Of a run that quantizes nothing, unless it went back before."""
    for weight, attempts, warns in (("E4M3", 0, False), (None, 0, True), (None, 1, False)):
        bench = Bench(weight=weight, format="E5M2")
        bench.plugin.attempts = attempts
        bench.plugin.run_start(bench.run)
        told = ["rollback: format changes nothing: nothing is quantized"]
        assert bench.events == (told if warns else [])


def test_warns_of_settings_that_never_act():
    """A patience above the run's, and an age that no snapshot reaches."""
    bench = Bench(nan_patience=11, steps=51)
    bench.plugin.run_start(bench.run)
    assert "nan_patience 11 is never reached unless steps are skipped unc" in bench.events[0]
    assert "no snapshot is ever 51 steps old" in bench.events[1]
    bench = Bench(nan_patience=10, steps=50)
    bench.plugin.run_start(bench.run)
    assert bench.events == []


def test_a_run_survives_a_lost_weight(shelf, start):
    """A weight that turns NaN ends a run; with a rollback the run goes on to learn."""
    plant(shelf, "nan-weight")
    keys = {"max_steps": 40, "snapshot_interval": 5}
    lost = start(["nan-weight"], **keys)
    assert (lost.status, lost.steps_completed) == ("collapsed", 25)
    saved = start(["nan-weight", "rollback"], **keys, **{"rollback.steps": 5})
    assert (saved.status, saved.failure_reason) == ("finished", None)
    assert last_loss(saved) < 3.0  # 2.73, from 5.55; without the failure 2.69
    (event,) = events(saved.run_directory, "rollback")
    assert (event["step"], event["to"], event["plugin"]) == (18, 10, "rollback")


def test_a_run_survives_a_spike_of_the_learning_rate(shelf, start):
    """The loss grows tenfold and stays there; rolled back it learns, at a lower rate if told."""
    plant(shelf, "rate-spike")
    keys = {"max_steps": 60, "snapshot_interval": 5, "max_snapshots": 8}
    lost = start(["rate-spike"], **keys)
    assert last_loss(lost) > 20  # 49
    back = {"rollback.steps": 20, "rollback.learning_rate_factor": 0.5}
    saved = start(["rate-spike", "rollback"], **keys, **back)
    assert last_loss(saved) < 3.2  # 2.75 at the full rate
    (event,) = events(saved.run_directory, "rollback")
    line = next(x for x in saved.metrics_history if x["step"] == event["step"] + 1)
    twin = next(x for x in lost.metrics_history if x["step"] == event["step"] + 1)
    assert line["learning_rate"] == pytest.approx(twin["learning_rate"] / 2)


def test_a_failure_that_does_not_pass_ends_the_run_at_the_cap(shelf, start):
    """Three attempts, then the engine's patience: rolling back resets no count of the plugin's."""
    plant(shelf, "nan-gradients")
    keys = {"nan-gradients.count": 1000, "max_steps": 100, "snapshot_interval": 1}
    result = start(["nan-gradients", "rollback"], **keys, **{"rollback.steps": 1})
    assert result.status == "collapsed"
    assert len(events(result.run_directory, "rollback")) == 3
    assert result.steps_completed == 9 + 3 * 3 + 10


def test_resumes_alike(shelf, start):
    """The count of attempts is part of the state; a checkpoint holds no snapshots."""
    plant(shelf, "nan-weight")
    keys = {"nan-weight.at": 1, "snapshot_interval": 1, "rollback.steps": 1, "max_steps": 8}
    plugins = ["nan-weight", "rollback"]
    whole = check_resumes_alike(shelf, start, plugins, **keys, **{"rollback.nan_patience": 1})
    assert len(events(whole.run_directory, "rollback")) == 1
