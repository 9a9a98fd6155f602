"""The diagnostic ``flips``: sequences of codes, and what of them is an oscillation."""

import math

import pytest
import torch
from helpers import events
from helpers_diagnostics import Bench, linear
from planted import check_resumes_alike, plant
from torch import nn

from altcore.engine import Step
from altcore_diagnostics.flips import Flips

STORED = {"stored_weight": "E3M4"}
VIEW = {"layers": {"0": {"weight@fwd": {"format": "E7M0", "scaling": "none"}}}}


def run(sequence, recipe=STORED, plugin=None, **settings):
    """Let one weight take the values of ``sequence``; returns the measures of each step.

    A second weight, 16, stays, and keeps the scale at 1. The first step is always measured.
    """
    plugin = plugin or Flips(**settings)
    bench = Bench(nn.Sequential(linear(16.0, sequence[0])), recipe)
    return [bench.step(plugin, {"0.weight": [[16.0, value]]}) for value in sequence[1:]]


def oscillation(sequence, recipe=STORED, **settings):
    """Return (flips, oscillation share) of a whole sequence, after a first step of no move."""
    (first, *rest, found) = run(
        [sequence[0], *sequence], recipe, report_interval=len(sequence), **settings
    )
    assert first
    assert all(not measures for measures in rest)
    kind = "stored" if recipe is STORED else "view"
    return found[f"{kind}_flips"], found[f"{kind}_oscillation_share"]


@pytest.mark.parametrize("recipe", [STORED, VIEW], ids=["stored", "view"])
@pytest.mark.parametrize(
    ("sequence", "expected"),
    [
        ([1, 2, 1], (2, 1 / 2)),  # A B A: the second flip goes back
        ([1, 2, 1, 2], (3, 2 / 3)),
        ([1, 2, 2, 2, 1], (2, 1 / 2)),  # it may rest in between
        ([1, 2, 4], (2, 0)),  # one way is no oscillation
        ([1, 2, 4, 1], (3, 0)),  # nor is a round trip: 2 was before 4
        ([1, 2, 4, 2], (3, 1 / 3)),
        ([1, -1, 1], (2, 1 / 2)),
    ],
)
def test_sequences(sequence, expected, recipe):
    assert oscillation([float(v) for v in sequence], recipe) == pytest.approx(expected)


@pytest.mark.parametrize(("rest", "share"), [(2, 1), (3, 0)])
def test_the_window(rest, share):
    """Back three steps after the flip is within a window of 3, four steps is not."""
    sequence = [1.0, 2.0, *[2.0] * rest, 1.0]
    # The first flip is before the last window: it is the second one's past only.
    assert oscillation(sequence, window=3) == (1, share)


def test_the_window_is_ten_steps():
    assert oscillation([1.0, 2.0, *[2.0] * 9, 1.0]) == (1, 1)
    assert oscillation([1.0, 2.0, *[2.0] * 10, 1.0]) == (1, 0)


def test_counts_are_those_since_the_last_measurement():
    """A step is in one measurement, the first one too; but the past is kept across them: the flip
    of step 3 goes back on that of step 2.
    """
    first, one, two = (m for m in run([1.0, 1.01, 2.0, 1.0, 1.0], report_interval=2) if m)
    assert (first["stored_flips"], first["stored_updates"]) == (0, 1)
    assert (one["stored_flips"], one["stored_updates"], one["stored_stall_ratio"]) == (1, 1, 0)
    assert one["stored_oscillation_share"] == 0
    assert (two["stored_flips"], two["stored_updates"], two["stored_stall_ratio"]) == (1, 1, 0)
    assert two["stored_oscillation_share"] == 1
    assert two["stored_flips/0"] == 1


def test_where_nothing_flips_there_is_no_share():
    (found,) = run([1.0, 1.001], report_interval=1)
    assert (found["stored_flips"], found["stored_stall_ratio"]) == (0, 1)
    assert math.isnan(found["stored_oscillation_share"])


def test_a_measurement_that_was_discarded_comes_with_the_next_step():
    plugin = Flips(report_interval=2)
    bench = Bench(nn.Sequential(linear(16.0, 1.0)), STORED)
    bench.step(plugin, {"0.weight": [[16.0, 2.0]]})
    bench.run.step += 1  # step 2 calls no post_step
    found = bench.step(plugin, {"0.weight": [[16.0, 1.0]]})
    assert (found["stored_flips"], found["stored_oscillation_share"]) == (1, 1)


@pytest.mark.parametrize("window", [1, 2, 5, 6, 9])
def test_a_measurement_is_of_the_last_window_or_of_what_came_since_the_one_before(window):
    """Measured are steps 1, 6 and 12; some steps flip."""
    flipping, values = {1, 3, 4, 6, 7, 10, 12}, [1.0]
    for step in range(1, 13):
        values.append(3.0 - values[-1] if step in flipping else values[-1])
    found = [m["stored_flips"] for m in run(values, report_interval=6, window=window) if m]
    for last, now, flips in zip((0, 1, 6), (1, 6, 12), found, strict=True):
        assert flips == len(flipping & {*range(max(last, now - window) + 1, now + 1)})


def test_steps_that_a_rollback_undid_are_no_past():
    """Neither are they counted, nor does a flip go back on theirs."""
    plugin = Flips(report_interval=3)
    bench = Bench(nn.Sequential(linear(16.0, 1.0)), STORED)
    for value in (1.0, 2.0):
        bench.step(plugin, {"0.weight": [[16.0, value]]})
    plugin.on_event({"event": "recipe", "step": 2})
    assert plugin.swings
    plugin.on_event({"event": "rollback", "step": 2, "to": 1})
    found = bench.step(plugin, {"0.weight": [[16.0, 1.0]]})
    assert (found["stored_flips"], found["stored_oscillation_share"]) == (1, 0)


def test_a_new_scale_is_no_flip():
    """Where the scale is doubled, codes are not compared; values that stay can still come back."""
    plugin = Flips(report_interval=1)
    bench = Bench(nn.Sequential(linear(31.0, 1.0)), STORED)
    bench.step(plugin, {"0.weight": [[31.0, 2.0]]})
    found = bench.step(plugin, {"0.weight": [[40.0, 1.0]]})
    assert math.isnan(found["stored_oscillation_share"])
    found = bench.step(plugin, {"0.weight": [[40.0, 2.0]]})
    assert found["stored_oscillation_share"] == 0


def test_state_goes_on_where_it_was():
    """Halfway, a second plugin takes over from the state of the first."""
    sequence = [1.0, 2.0, 1.0, 2.0, 4.0]
    bench = Bench(nn.Sequential(linear(16.0, 1.0)), STORED)
    whole, first, second = (Flips(report_interval=5) for _ in range(3))
    found = []
    for i, value in enumerate(sequence):
        if i == 3:
            second.load_state_dict(first.state_dict())
        plugins, step = (whole, first if i < 3 else second), bench.forward()
        for plugin in plugins:
            bench.begin(plugin, step)
        bench.update(step, {"0.weight": [[16.0, value]]})
        found = [bench.measure(plugin, step) for plugin in plugins]
    assert found[0]["stored_oscillation_share"] == pytest.approx(2 / 4)
    assert found[0] == found[1]


def test_another_format_forgets_the_past():
    """What a view was in one format says nothing in another."""
    plugin = Flips(report_interval=1)
    model = nn.Sequential(linear(16.0, 1.0))
    bench = Bench(model, VIEW)
    bench.step(plugin, {"0.weight": [[16.0, 2.0]]})
    bench.q.remove()
    other = {"layers": {"0": {"weight@fwd": {"format": "E3M4", "scaling": "none"}}}}
    again = Bench(model, other)
    again.run.step = bench.run.step
    found = again.step(plugin, {"0.weight": [[16.0, 1.0]]})
    assert (found["view_flips"], found["view_oscillation_share"]) == (1, 0)


def test_an_unquantized_model_has_no_measures():
    assert run([1.0, 2.0], {}, report_interval=1) == [{}]


@pytest.mark.parametrize(("recipe", "kind"), [("pure", "stored"), ("master", "view")])
def test_in_a_run(start, recipe, kind):
    """Each measurement is over its steps; the stall ratio of one step is the core's rate."""
    settings = {"format": "E3M4", "recipe": recipe, "max_steps": 6}
    each = start(["flips"], **settings, flips__report_interval=1)
    every = start(["flips"], **settings, flips__report_interval=3)
    assert [line["step"] for line in every.diagnostics_history] == [1, 3, 6]
    lines = each.diagnostics_history
    for line, core in zip(lines, each.metrics_history, strict=True):
        rate = line[f"flips/{kind}_stall_ratio"]
        assert rate == pytest.approx(core[f"{kind}_stall_rate"], abs=1e-3)
    for key in ("flips", "updates"):
        sums = [sum(x[f"flips/{kind}_{key}"] for x in part) for part in (lines[1:3], lines[3:])]
        found = [x[f"flips/{kind}_{key}"] for x in every.diagnostics_history]
        assert found == [lines[0][f"flips/{kind}_{key}"], *sums]
    assert 0 < lines[-1][f"flips/{kind}_oscillation_share"] < 1


def test_steps_that_are_not_watched_cost_nothing(start):
    """They are not recorded for it, nor are its hooks called: of eight all but the last four and
    the first.
    """
    settings = {"format": "E3M4", "recipe": "pure", "max_steps": 8, "log_interval": 100}
    measured = start(["flips"], **settings, flips__report_interval=8, flips__window=2)
    assert [line["step"] for line in measured.metrics_history] == [1, 5, 6, 7, 8]
    assert [line["step"] for line in measured.diagnostics_history] == [1, 8]
    plugin = Flips(report_interval=8, window=2)
    assert [s for s in range(1, 9) if plugin.is_due(Step(s))] == [1, 5, 6, 7, 8]
    assert plugin.is_due(Step(9)), "step 8 was discarded"


def test_the_first_step_is_not_in_a_window_far_from_it():
    """What it counted is measured at once; a flip that goes back on its own is too old."""
    sequence = [1.0, 2.0, 2.0, 2.0, 2.0, 1.0]
    first, *rest, last = run(sequence, report_interval=5, window=2)
    assert (first["stored_flips"], first["stored_updates"]) == (1, 1)
    assert not any(rest)
    assert (last["stored_flips"], last["stored_oscillation_share"]) == (1, 0)


def test_a_tied_weight_is_one(start):
    """The embedding is the head's weight too: its flips and what goes back have one name."""
    made = {"layers": {"lm_head": {"weight": "E3M4"}}}
    _, line = start(["flips"], recipe=made, flips__report_interval=3).diagnostics_history
    layers = {key.rpartition("/")[2] for key in line if key.count("/") == 2}
    assert layers == {"transformer.wte"}
    assert line["flips/view_updates"] > line["flips/view_flips"] > 0


def test_a_resumed_run_measures_the_same(start):
    settings = {"format": "E3M4", "recipe": "pure", "flips__report_interval": 4}
    start(["flips"], name="part", max_steps=6, **settings, min_lr_ratio=1.0)
    # The schedule depends on max_steps, unless the rate is constant after warm-up.
    whole = start(["flips"], name="flat", max_steps=8, **settings, min_lr_ratio=1.0)
    resumed = start.resume("part", max_steps=8)
    assert resumed.diagnostics_history[-1] == whole.diagnostics_history[-1]


def test_a_run_resumed_after_a_rollback_measures_the_same(shelf, start):
    """Step 8 is measured by what came after the rollback of step 3: some before the crash."""
    plant(shelf, "nan-weight")
    settings = {"nan-weight.at": 2, "snapshot_interval": 1, "rollback.steps": 1, "format": "E3M4"}
    settings |= {"rollback.nan_patience": 1, "recipe": "pure", "max_steps": 12}
    plugins = ["nan-weight", "rollback", "flips"]
    whole = check_resumes_alike(shelf, start, plugins, **settings, **{"flips.report_interval": 8})
    assert [event["step"] for event in events(whole.run_directory, "rollback")] == [3]
    each = start(plugins, name="each", **settings, **{"flips.report_interval": 1})
    (line,) = (x for x in whole.diagnostics_history if x["step"] == 8)
    for key in ("flips/stored_flips", "flips/stored_updates"):
        assert line[key] == sum(x[key] for x in each.diagnostics_history if 3 < x["step"] <= 8)


def test_history_is_held_in_the_weights_own_type():
    """Eight bytes for each element on a grid."""
    plugin = Flips(report_interval=1)
    run([1.0, 2.0], plugin=plugin)
    (swing,) = plugin.swings.values()
    assert (swing.earlier.dtype, swing.flipped_at.dtype) == (torch.float32, torch.int32)
