"""The diagnostic ``loss-slope``: slopes, knee and power law of losses that are given."""

import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import events
from helpers_epochs import Points

from altcore.engine import Step
from altcore.engine.epochs import Epoch
from altcore.engine.schedule import is_due
from altcore.errors import BadInput
from altcore.hooks import build
from altcore_diagnostics.analysis.power_law import power_law
from altcore_diagnostics.loss_slope import LossSlope, reached

POINT, EPOCH = "point_loss", "epoch_loss"


class Bench:
    """A run that only has epochs, and a plugin that sees losses as they are given."""

    def __init__(self, plugin, batches=8, accumulation=1, **group):
        self.plugin, self.told = plugin, []
        self.run = SimpleNamespace(
            epoch=batches and Epoch(batches, accumulation),
            optimizer=SimpleNamespace(param_groups=[{"weight_decay": 0.0}, group]),
            emit=lambda kind, **data: self.told.append((kind, data["message"])),
        )
        self.step = 0

    def see(self, losses):
        """Return the measures of each step, by step, without the weight decay."""
        found = {}
        for loss in losses:
            self.step += 1
            step = Step(self.step)
            step.mean_loss = torch.tensor(loss, dtype=torch.float64)
            measures = self.plugin.post_backward(self.run, step)
            found[self.step] = {k: v for k, v in measures.items() if k != "weight_decay"}
        return found

    def findings(self):
        return self.plugin.findings(self.run, [])


def falling(epochs, batches=8, slope=-0.1, start=2.0):
    """Losses whose means over epochs lie on a line."""
    epoch = np.repeat(np.arange(1, epochs + 1), batches)
    swing = np.tile(np.linspace(-0.3, 0.3, batches), epochs)
    return list(start + slope * epoch + swing)


def steps_with(found, name):
    return [step for step, measures in found.items() if name in measures]


def test_the_frequencies():
    """A point each quarter, a mean each epoch; slopes from 5 and the knee on; a law each 2."""
    found = Bench(LossSlope()).see(falling(20))
    ends = [8 * epoch for epoch in range(1, 21)]
    assert steps_with(found, POINT) == list(range(2, 161, 2))
    assert steps_with(found, EPOCH) == ends
    assert steps_with(found, "alpha_5_15") == ends[5:]  # of epoch 5 alone there is none
    assert found[80]["knee_epoch"] == 10
    assert steps_with(found, "knee_epoch") == steps_with(found, "burn_in_loss") == ends[9:]
    assert steps_with(found, "alpha_full") == ends[10:]
    for name in ("power_law_slope", "power_law_amplitude", "r_squared"):
        assert steps_with(found, name) == ends[11::2]


def test_the_values():
    """Slopes of the line; a law by `power_law`, from the end of the knee epoch on."""
    losses = falling(20)
    bench = Bench(LossSlope())
    found = bench.see(losses)
    assert found[8][EPOCH] == pytest.approx(1.9)
    assert found[2][POINT] == pytest.approx(np.mean(losses[:2]))
    assert found[160]["alpha_full"] == pytest.approx(-0.1)
    assert found[160]["burn_in_loss"] == pytest.approx(1.0)
    y = np.reshape(losses, (-1, 2)).mean(1)[39:]
    fit = power_law(np.arange(10, 20.25, 0.25), np.where(y > 0, y, np.nan))
    last = {"power_law_amplitude": fit[0], "power_law_slope": fit[1], "r_squared": fit[2]}
    assert {k: found[160][k] for k in last} == pytest.approx(last)
    (row,) = bench.findings()
    assert row == {k: v for k, v in found[160].items() if k not in (POINT, EPOCH)}
    assert bench.told == []


@pytest.mark.parametrize("steps", [160, 165, 168])
def test_the_findings_are_what_was_measured_last(steps):
    """Where a run ends between two fits, too: a table of the measures has the same numbers."""
    bench = Bench(LossSlope())
    found = bench.see(falling(21)[:steps])
    measured = {k: v for step in sorted(found) for k, v in found[step].items()}
    (row,) = bench.findings()
    assert row == {k: v for k, v in measured.items() if k not in (POINT, EPOCH)}
    assert row["r_squared"] == found[160]["r_squared"]


def test_the_early_slope_sees_its_window_only():
    """Epoch 4 is before it and 15 after; before the window is full it is of the epochs so far."""
    losses = np.array(falling(16))
    losses[: 4 * 8] += 5
    losses[14 * 8 :] += 7
    found = Bench(LossSlope()).see(list(losses))
    for epoch in range(6, 17):
        assert found[8 * epoch]["alpha_5_15"] == pytest.approx(-0.1)


def test_the_settings():
    plugin = LossSlope(points_per_epoch=2, early_start=2, early_end=4, knee_loss=1.7, fit_epochs=3)
    found = Bench(plugin).see(falling(6))
    assert steps_with(found, POINT) == list(range(4, 49, 4))
    assert steps_with(found, "alpha_2_4") == [24, 32, 40, 48]
    assert found[48]["knee_epoch"] == 3
    assert steps_with(found, "r_squared") == [24 + 24]  # at epoch 3 there is one point


@pytest.mark.parametrize("given", [{"early_start": 5, "early_end": 6}, {"early_end": 5}])
def test_a_window_without_a_slope_is_refused(given):
    with pytest.raises(BadInput, match="two epochs") as caught:
        build(LossSlope, given, "loss-slope")
    assert caught.value.key == "loss-slope.early_end"


def test_points_lie_where_evaluations_do():
    """At the steps nearest to their part of an epoch, fractions of a step included."""
    for interval in (Fraction(391, 4), Fraction(5, 2), Fraction(3, 4), Fraction(7)):
        grows = [s for s in range(1, 400) if reached(s, interval) > reached(s - 1, interval)]
        assert grows == [s for s in range(1, 400) if is_due(interval, s)]


def test_losses_that_are_not_finite():
    """They are left out of their means; a quarter and an epoch of nothing else has none."""
    losses = falling(9)
    losses[0], losses[4:6], losses[40:48] = math.nan, [math.inf] * 2, [math.nan] * 8
    bench = Bench(LossSlope())
    found = bench.see(losses)
    assert found[2][POINT] == losses[1]
    assert POINT not in found[6]
    assert found[8][EPOCH] == pytest.approx(np.mean(losses[1:4] + losses[6:8]))
    assert EPOCH not in found[48]
    assert steps_with(found, "alpha_5_15") == [56, 64, 72]  # of 5 and 7 on
    assert found[72]["alpha_5_15"] == pytest.approx(-0.1)
    assert [m for _, m in bench.told] == [
        "alpha_5_15 cannot be fitted: too few mean losses from epoch 5 on are finite, and "
        "positive for a power law"
    ]


def test_a_loss_that_stays_nan_warns_once_for_each():
    bench = Bench(LossSlope())
    bench.see(falling(10) + [math.nan] * 80)
    assert [(kind, message.split()[0]) for kind, message in bench.told] == [
        ("warning", "alpha_full"),
        ("warning", "power_law_slope"),
    ]
    (row,) = bench.findings()
    assert row["alpha_5_15"] == pytest.approx(-0.1)
    assert row["knee_epoch"] == 10
    assert row["alpha_full"] is row["power_law_slope"] is row["r_squared"] is None


def test_a_knee_that_is_never_reached():
    """Null and said at the end: not fitted, though nothing is wrong with the losses."""
    bench = Bench(LossSlope())
    found = bench.see(falling(8))
    for name in ("knee_epoch", "burn_in_loss", "alpha_full", "r_squared"):
        assert steps_with(found, name) == []
    row, line = bench.findings()
    assert row["alpha_5_15"] == pytest.approx(-0.1)
    assert {k for k, v in row.items() if v is None} == {
        "knee_epoch", "burn_in_loss", "alpha_full",
        "power_law_slope", "power_law_amplitude", "r_squared",
    }  # fmt: skip
    assert line.startswith("no epoch's mean loss reached 1: ")
    assert bench.told == []


def test_nothing_before_the_first_point():
    assert Bench(LossSlope()).findings()[0]["alpha_5_15"] is None


def test_epochs_that_end_within_a_step():
    """Ten micro-batches in steps of four: an epoch is two and a half steps."""
    found = Bench(LossSlope(points_per_epoch=2), batches=10, accumulation=4).see([2.0, 1.0] * 5)
    assert steps_with(found, EPOCH) == [3, 5, 8, 10]


@pytest.mark.parametrize(
    ("first", "points", "epochs"), [(1, 2, 1), (2, 4, 2), (9, 10, 2), (10, 12, 3), (21, 22, 4)]
)
def test_what_was_seen_in_part_has_no_mean(first, points, epochs):
    """Of a plugin that is added at a step of epochs of eight: no point, no epoch, no knee."""
    losses = falling(12, start=0.9)
    whole, late = Bench(LossSlope()).see(losses), Bench(LossSlope())
    late.step = first - 1
    found = late.see(losses[first - 1 :])
    assert steps_with(found, POINT)[0] == points
    assert steps_with(found, EPOCH)[0] == 8 * epochs
    for name in (POINT, EPOCH, "alpha_5_15"):
        given = {step: found[step][name] for step in steps_with(found, name)}
        assert given == {step: whole[step][name] for step in given}
    is_late = first > 1
    assert (steps_with(found, "knee_epoch") == []) == is_late
    assert (steps_with(found, "r_squared") == []) == is_late
    assert [m.split(" whole")[0] for _, m in late.told] == (
        [f"loss-slope saw no epoch before {epochs}"] if is_late else []
    )
    assert late.findings()[1:] == [m for _, m in late.told]
    assert "alpha_5_15" in found[96]


def test_an_early_slope_whose_first_epoch_was_not_seen():
    bench = Bench(LossSlope())
    bench.step = 36
    found = bench.see(falling(12)[36:])
    assert steps_with(found, EPOCH)[0] == 48
    assert steps_with(found, "alpha_5_15") == []
    row, line = bench.findings()
    assert row["alpha_5_15"] is row["knee_epoch"] is None
    assert "alpha_5_15 (from epoch 5)" in line
    assert bench.told == [("warning", line)]


def test_the_largest_weight_decay():
    bench = Bench(LossSlope(), weight_decay=0.1)
    step = Step(1)
    step.mean_loss = torch.tensor(1.0)
    assert bench.plugin.post_backward(bench.run, step)["weight_decay"] == 0.1


def test_a_workload_without_epochs():
    """It has no slope, and this is no reason to warn of anything."""
    bench = Bench(LossSlope(), batches=None)
    assert bench.see([1.0, 2.0]) == {1: {}, 2: {}}
    assert bench.findings() == ["the workload counts no epochs: no slope is fitted"]
    assert (bench.told, bench.plugin.losses) == ([], [])
    assert [bench.plugin.is_due(bench.run, Step(i)) for i in (1, 2)] == [True, False]


@pytest.mark.parametrize("at", [1, 20, 83, 88])
def test_state_goes_on_where_it_was(at):
    losses = [*falling(10), *[math.nan] * 80]
    whole = Bench(LossSlope())
    expected = whole.see(losses)
    first, second = Bench(LossSlope()), Bench(LossSlope())
    found = first.see(losses[:at])
    second.plugin.load_state_dict(first.plugin.state_dict())
    second.step = at
    assert found | second.see(losses[at:]) == expected
    assert first.told + second.told == whole.told
    assert second.findings() == whole.findings()


def test_in_a_run_that_is_resumed(start, shelf):
    """Every step is recorded, a resumed run has the same lines, and the summary has the slopes."""
    shelf.install("workload", "points", Points)
    keys = {"workload": "points", "compute": "float32", "warmup_steps": 0, "log_interval": 50}
    keys["points.batch_size"] = 5
    keys |= {"loss-slope.early_start": 1, "loss-slope.early_end": 4, "loss-slope.fit_epochs": 1}
    keys["schedule"] = "constant"
    whole = start(["loss-slope"], name="whole", max_steps=16, strict=True, **keys)
    start(["loss-slope"], name="part", max_steps=9, **keys)
    part = start.resume("part", max_steps=16)
    assert part.diagnostics_history == whole.diagnostics_history
    lines = {line["step"]: line for line in whole.diagnostics_history}
    assert list(lines) == list(range(1, 17))
    loss = {line["step"]: line["loss"] for line in whole.metrics_history}
    means = [np.mean([loss[s] for s in range(4 * n + 1, 4 * n + 5)]) for n in range(4)]
    assert [lines[4 * n + 4]["loss-slope/epoch_loss"] for n in range(4)] == pytest.approx(means)
    slope = np.polyfit([1, 2, 3], means[:3], 1)[0]
    assert lines[16]["loss-slope/alpha_1_4"] == pytest.approx(slope, abs=1e-6)
    assert all("loss-slope/weight_decay" in line for line in lines.values())
    findings = whole.summary["findings"]["loss-slope"]
    assert findings == part.summary["findings"]["loss-slope"]
    assert findings[0]["alpha_1_4"] == lines[16]["loss-slope/alpha_1_4"]
    assert not [e for e in events(whole.run_directory) if e["event"] == "warning"]
