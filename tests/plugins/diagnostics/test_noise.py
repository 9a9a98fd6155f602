"""The diagnostic ``noise``: spectrum and variances of losses and gradients that are given."""

import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers_diagnostics import NoHostRead
from helpers_epochs import Points
from torch import nn

from altcore.engine import Step
from altcore.errors import BadInput
from altcore.hooks import build
from altcore_diagnostics.analysis.ewma import ewma, residuals
from altcore_diagnostics.analysis.spectrum import psd_tail, total_power
from altcore_diagnostics.noise import Noise


class Bench:
    """A run of two weights whose losses and gradients are given."""

    def __init__(self, plugin, steps=None):
        self.plugin, self.index = plugin, 0
        model = nn.Module()
        model.a, model.b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(()))
        epoch = None if steps is None else SimpleNamespace(steps=Fraction(steps))
        self.run = SimpleNamespace(model=model, epoch=epoch)

    def see(self, losses, gradients=None, discarded=()):
        """Return the measures of each step that has some, as host numbers."""
        found = {}
        for i, loss in enumerate(losses):
            self.index += 1
            a, b = (0.0, 0.0), 0.0
            if gradients is not None:
                *a, b = gradients[i]
            self.run.model.a.grad, self.run.model.b.grad = torch.tensor(a), torch.tensor(b)
            step = Step(self.index)
            step.mean_loss = torch.tensor(loss, dtype=torch.float32)
            self.plugin.post_backward(self.run, step)
            self.run.model.a.grad.mul_(100)  # as a clipper may
            if self.index in discarded:
                continue
            measures = self.plugin.post_step(self.run, step)
            if measures is not None:
                found[self.index] = {k: v for k, v in measures.items() if v is not None}
        for measures in found.values():
            measures["gradient_variance"] = float(measures["gradient_variance"])
        return found


def draws(size, seed=0):
    return np.random.default_rng(seed).normal(size=size).astype("float32")


@pytest.mark.parametrize(
    ("steps", "given", "due"),
    [(4, None, [1, 8, 16]), (Fraction(5, 2), None, [1, 5, 10, 15, 20]), (4, 7, [1, 7, 14])],
)
def test_the_frequency(steps, given, due):
    """Every two epochs, if nothing else is asked for; and the first step, as all diagnostics."""
    found = Bench(Noise(report_interval=given), steps).see(draws(20))
    assert list(found) == due
    assert set(found[1]) == {"gradient_variance"}
    assert all(len(found[step]) == 4 for step in due[1:])


def test_without_epochs():
    found = Bench(Noise()).see(draws(1000))
    assert list(found) == [1, 1000]


def test_the_losses_of_a_window():
    """Each measurement is of its own window; the weighted mean goes on from one to the next."""
    losses = 1 + draws(24) / 8
    found = Bench(Noise(report_interval=8)).see(losses)
    errors, _ = residuals(losses.tolist())
    for start in (0, 8, 16):
        window, measures = losses[start : start + 8], found[start + 8]
        assert measures["psd_tail"] == pytest.approx(psd_tail(window))
        assert measures["total_power"] == pytest.approx(total_power(window))
        own = errors[max(start - 1, 0) : start + 7]  # the first loss of all has none
        assert measures["residual_power"] == pytest.approx(np.mean(np.square(own)))


def test_the_settings():
    losses = draws(16)
    plugin = Noise(report_interval=16, alpha=0.5, low_band=(0.1, 0.2), high_band=(0.2, 0.4))
    found = Bench(plugin).see(losses)[16]
    assert found["psd_tail"] == pytest.approx(psd_tail(losses, (0.1, 0.2), (0.2, 0.4)))
    errors, _ = residuals(losses.tolist(), alpha=0.5)
    assert found["residual_power"] == pytest.approx(np.mean(np.square(errors)))


@pytest.mark.parametrize("band", [(0.3,), (0.3, 0.3), (0.4, 0.3), (-0.1, 0.3), (0.3, 0.6)])
def test_bands_that_are_none(band):
    with pytest.raises(BadInput, match="rising frequencies") as caught:
        build(Noise, {"low_band": list(band)}, "noise")
    assert caught.value.key == "noise.low_band"


def test_the_variance_of_the_gradient():
    """That of each element by the formula, summed up; of raw gradients, whatever clips them."""
    gradients = 3 + draws((30, 3))
    found = Bench(Noise(report_interval=1)).see([1.0] * 30, gradients)
    state = [(None, 0.0)] * 3
    for i, gradient in enumerate(gradients.tolist()):
        state = [ewma(x, *before) for x, before in zip(gradient, state, strict=True)]
        expected = sum(variance for _, variance in state)
        assert found[i + 1]["gradient_variance"] == pytest.approx(expected, rel=1e-5)
    assert found[1]["gradient_variance"] == 0


def test_it_is_about_the_trace_of_the_covariance():
    """Of noise about a constant gradient 1 / (1 − α/2) times it, since its mean is noisy, too."""
    gradients = 5 + draws((3000, 3)) * np.float32([1, 2, 3])
    found = Bench(Noise(report_interval=10)).see([1.0] * 3000, gradients)
    late = [measures["gradient_variance"] for step, measures in found.items() if step > 100]
    assert np.mean(late) == pytest.approx(14 / 0.95, rel=0.1)


def test_what_is_not_finite_is_left_out():
    """Loss and gradient of discarded steps; the measurement comes a step later."""
    losses, gradients = draws(17), draws((17, 3))
    losses[[4, 15]], gradients[[4, 15]] = math.inf, math.nan
    found = Bench(Noise(report_interval=16)).see(losses, gradients, discarded=(5, 16))
    kept = [i for i in range(17) if i not in (4, 15)]
    assert list(found) == [1, 17]
    assert found[17]["total_power"] == pytest.approx(total_power(losses[kept]))
    others = Bench(Noise(report_interval=15)).see(losses[kept], gradients[kept])
    assert found[17] == pytest.approx(others[15])


def test_a_first_step_that_is_discarded():
    """Its gradient is no mean that others are compared with."""
    gradients = draws((5, 3))
    gradients[0] = math.nan
    found = Bench(Noise(report_interval=1)).see([1.0] * 5, gradients, discarded=(1,))
    others = Bench(Noise(report_interval=1)).see([1.0] * 4, gradients[1:])
    for step in (2, 3, 4, 5):
        assert found[step]["gradient_variance"] == others[step - 1]["gradient_variance"]


def test_losses_that_are_never_finite():
    """No spectrum, and nothing raised."""
    found = Bench(Noise(report_interval=8)).see([math.nan] * 8)
    assert set(found[8]) == {"gradient_variance"}


def test_a_parameter_without_a_gradient():
    bench = Bench(Noise(report_interval=1))
    bench.run.model.c = nn.Parameter(torch.ones(3))
    assert bench.see([1.0, 1.0], [[1.0, 2.0, 3.0], [2.0, 2.0, 3.0]])[2][
        "gradient_variance"
    ] == pytest.approx(0.1)


def test_no_host_read_between_measurements():
    with NoHostRead():
        bench = Bench(Noise(report_interval=100))
        step = Step(2)
        step.mean_loss = torch.ones(())
        bench.run.model.a.grad = torch.ones(2)
        bench.plugin.post_backward(bench.run, step)
        bench.plugin.post_step(bench.run, step)


@pytest.mark.parametrize("at", [1, 8, 11])
def test_state_goes_on_where_it_was(at):
    losses, gradients = draws(20), draws((20, 3))
    expected = Bench(Noise(report_interval=8)).see(losses, gradients)
    first, second = Bench(Noise(report_interval=8)), Bench(Noise(report_interval=8))
    found = first.see(losses[:at], gradients[:at])
    second.plugin.load_state_dict(first.plugin.state_dict())
    second.index = at
    assert found | second.see(losses[at:], gradients[at:]) == expected


def test_in_a_run_that_is_resumed(start, shelf):
    """The lines are the same."""
    shelf.install("workload", "points", Points)
    keys = {"workload": "points", "compute": "float32", "schedule": "constant"}
    keys |= {"noise.report_interval": "1.5 epochs", "points.batch_size": 5}
    whole = start(["noise"], name="whole", max_steps=12, strict=True, **keys)
    start(["noise"], name="part", max_steps=8, **keys)
    part = start.resume("part", max_steps=12)
    assert part.diagnostics_history == whole.diagnostics_history
    assert [line["step"] for line in whole.diagnostics_history] == [1, 6, 12]
    assert set(whole.diagnostics_history[1]) == {
        "step", "noise/psd_tail", "noise/total_power",
        "noise/residual_power", "noise/gradient_variance",
    }  # fmt: skip
