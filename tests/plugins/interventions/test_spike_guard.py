"""The intervention ``spike-guard``: what is a spike, and what becomes of its gradients."""

import copy
import math
import statistics
from types import SimpleNamespace

import pytest
import torch
from helpers import events
from helpers_diagnostics import NoHostRead
from planted import check_resumes_alike, last_loss, plant
from torch import nn

import altcore
from altcore.engine import Step
from altcore.hooks import build
from altcore_interventions.spike_guard import SpikeGuard


class Bench:
    """A plugin, fed with losses."""

    def __init__(self, **settings):
        self.plugin = build(SpikeGuard, settings, "spike-guard")
        self.model = nn.Linear(2, 2)
        self.index = 0

    def step(self, *micro, items=None):
        """Take a step with the losses of its micro-batches; returns (z, is it zeroed)."""
        self.index += 1
        for p in self.model.parameters():
            p.grad = torch.ones_like(p)
        step = Step(self.index, items=items or [8] * len(micro))
        losses = [torch.tensor(loss) for loss in micro]
        with NoHostRead():
            for step.micro, step.loss in enumerate(losses):
                assert self.plugin.pre_backward(step) is None
            measures = self.plugin.post_backward(step)
            assert self.plugin.pre_step(SimpleNamespace(model=self.model)) is None
        zeroed = {float(p.grad.abs().sum()) == 0 for p in self.model.parameters()}
        assert len(zeroed) == 1
        return float(measures["z"]), zeroed.pop()


def test_z_is_that_of_the_last_losses():
    """Mean and deviation are of the window before; the oldest leaves it."""
    bench = Bench(window=4, least=3)
    losses = [3.0, 1.0, 2.0, 4.0, 2.5, 3.5]
    found = [bench.step(x) for x in losses]
    assert all(math.isnan(z) for z, _ in found[:3])
    for i in (3, 4, 5):
        before = losses[max(0, i - 4) : i]
        z = (losses[i] - statistics.fmean(before)) / statistics.pstdev(before)
        assert found[i][0] == pytest.approx(z, rel=1e-5)
    assert not any(zeroed for _, zeroed in found)


def test_the_loss_is_the_mean_over_micro_batches():
    """As the engine has it."""
    one, other = Bench(window=4, least=2), Bench(window=4, least=2)
    for a, b in ((1.0, 3.0), (2.0, 1.0), (5.0, 1.0)):
        first, second = one.step(a, b), other.step((a + b) / 2)
        assert first == second or math.isnan(first[0])


def test_micro_batches_count_by_their_items():
    """As they do in the loss that the engine records."""
    one, other = Bench(window=4, least=2), Bench(window=4, least=2)
    for a, b in ((1.0, 3.0), (2.0, 1.0), (5.0, 1.0)):
        first, second = one.step(a, b, items=[4, 12]), other.step((a + 3 * b) / 4)
        assert first == second or math.isnan(first[0])


def test_a_spike_is_zeroed_and_stays_out_of_the_window():
    """The same spike is one again: it has not moved the mean. A fall is none."""
    bench = Bench(window=8, least=4)
    for loss in (1.0, 1.1, 0.9, 1.0):
        assert not bench.step(loss)[1]
    first, second = bench.step(9.0), bench.step(9.0)
    assert first == second
    assert first[1]
    assert not bench.step(-50.0)[1]


def test_a_new_level_is_taken_for_one():
    """After two spikes in a row the third such loss counts."""
    bench = Bench(window=4, least=2, most_consecutive=2)
    for loss in (1.0, 1.1, 0.9):
        bench.step(loss)
    assert [bench.step(9.0)[1] for _ in range(4)] == [True, True, False, False]


def test_what_is_not_finite_is_no_spike_and_not_kept():
    """The engine deals with it; the window stays as it was."""
    bench, plain = Bench(window=4, least=2), Bench(window=4, least=2)
    for each in (bench, plain):
        each.step(1.0)
        each.step(1.5)
    for bad in (math.nan, math.inf):
        assert not bench.step(bad)[1]
    assert bench.step(9.0) == plain.step(9.0)


def test_state_survives_a_checkpoint():
    """Window and counts go on."""
    bench, other = Bench(window=4, least=2), Bench(window=4, least=2)
    for loss in (1.0, 1.5, 1.2):
        bench.step(loss)
    other.plugin.load_state_dict(copy.deepcopy(bench.plugin.state_dict()))
    assert other.step(9.0) == bench.step(9.0)


def test_impossible_settings_are_refused():
    """More losses than the window holds are never there."""
    with pytest.raises(altcore.BadInput, match=r"spike-guard.least"):
        Bench(window=4, least=5)


def test_a_run_survives_a_spike(shelf, start):
    """One batch with a huge gradient throws SGD off for good; with the guard nothing happens."""
    plant(shelf, "loss-spike")
    keys = {"optimizer": "sgd", "learning_rate": 0.1, "grad_clip": 0, "max_steps": 60}
    lost = start(["loss-spike"], **keys)
    assert lost.status == "collapsed" or last_loss(lost) > 100
    saved = start(["loss-spike", "spike-guard"], **keys)
    assert (saved.status, saved.failure_reason) == ("finished", None)
    assert last_loss(saved) < 2.6  # 2.44, from 5.55; without the failure 2.43
    (warning,) = events(saved.run_directory, "warning")
    assert "spike-guard: the loss of step 30" in warning["message"]
    assert saved.diagnostics_history[-1]["spike-guard/spikes"] == 1


def test_a_run_without_spikes_is_as_it_was(start):
    """Not a bit of it changes."""
    plain, guarded = start(max_steps=30), start(["spike-guard"], max_steps=30)
    untouched = [{**x, "grad_norm_after_plugins": x["grad_norm"]} for x in plain.metrics_history]
    assert guarded.metrics_history == untouched


def test_resumes_alike(shelf, start):
    """Across a spike, with what was told."""
    plant(shelf, "loss-spike")
    keys = {"loss-spike.at": 7, "spike-guard.least": 4}
    check_resumes_alike(shelf, start, ["loss-spike", "spike-guard"], **keys)
