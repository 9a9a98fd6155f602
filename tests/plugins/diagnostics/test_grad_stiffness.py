"""The diagnostic ``grad-stiffness``: known correlations and shares."""

import math
from statistics import correlation

import pytest
import torch
from helpers_diagnostics import Bench, linear, square
from torch import nn

from altcore_diagnostics.grad_stiffness import GradStiffness

E7M0 = {"weight@fwd": {"format": "E7M0", "scaling": "none"}}


def measure(model, recipe, grads):
    return Bench(model, recipe).gradients(GradStiffness(), grads)


@pytest.mark.parametrize(
    ("grads", "expected"),
    [([1.0, -2.0, 4.0, -8.0], 1), ([8.0, 7.0, -5.0, -1.0], -1), ([2.0, -2.0, 2.0, 2.0], math.nan)],
)
def test_correlation_by_hand(grads, expected):
    """In E7M0 the width at 1, 2, 4, 8 is 1, 2, 4, 8: |g| = s, |g| = 9 - s, and a constant |g|."""
    model = nn.Sequential(linear(1.0, 2.0, -4.0, 8.0))
    found = measure(model, {"layers": {"0": E7M0}}, {"0.weight": [grads]})
    assert found["view_correlation"] == pytest.approx(expected, nan_ok=True)
    assert found["view_correlation/0"] == pytest.approx(expected, nan_ok=True)


def test_fixed_point_has_no_correlation():
    """Stiffness is the same everywhere: there is nothing that could go together."""
    model = nn.Sequential(linear(0.9, -0.3, 0.1))
    found = measure(model, {"stored_weight": "E0M7"}, {"0.weight": [[1.0, 2.0, 3.0]]})
    assert math.isnan(found["stored_correlation"])
    assert found["stored_ratio"] == 2 * 128


def test_ratio_and_share_below():
    """|g| of 1, 1, 1, 9 and s of 1, 2, 4, 8: two gradients below, 12/4 over 15/4."""
    model = nn.Sequential(linear(1.0, 2.0, 4.0, 8.0))
    grads = {"0.weight": [[-1.0, 1.0, 1.0, -9.0]]}
    found = measure(model, {"layers": {"0": E7M0}}, grads)
    assert found["view_ratio"] == 12 / 15
    assert found["view_below_share"] == 0.5


def test_the_aggregate_is_that_of_all_elements():
    """Layers with means of their own: as if their elements were in one tensor."""
    torch.manual_seed(0)
    exponents = torch.randint(-3, 4, (2, 40))
    weights = 2.0**exponents
    grads = torch.randn(2, 40) * weights.sqrt() + torch.tensor([[0.0], [5.0]])
    model = nn.ModuleList([linear(*weights[0].tolist()), linear(*weights[1].tolist())])
    model.forward = lambda x: model[0](x) + model[1](x)
    given = {f"{i}.weight": grads[i : i + 1].tolist() for i in range(2)}
    found = measure(model, {"layers": {"*": E7M0}}, given)
    sizes = grads.abs()
    whole = correlation(sizes.flatten().tolist(), weights.flatten().tolist())
    assert found["view_correlation"] == pytest.approx(whole)
    for i in range(2):
        part = correlation(sizes[i].tolist(), weights[i].tolist())
        assert found[f"view_correlation/{i}"] == pytest.approx(part)
    assert found["view_ratio"] == pytest.approx(float(sizes.mean() / weights.mean()))


def test_a_parameter_without_gradient_is_left_out():
    model = nn.Sequential(square(1.0), linear(1.0, 1.0))
    found = measure(model, {"layers": {"*": E7M0}}, {"1.weight": None})
    assert "view_ratio/1" not in found
    assert "view_ratio/0" in found


def test_updates_below_half_of_the_stiffness():
    """At 1 E3M4 has a width of 1/16: u of 1/64 and -1/40 are below half of it, 1/32 is not.

    The weight that does not move is left out.
    """
    bench = Bench(nn.Sequential(linear(31.0, 1.0, 1.0, -1.0)), {"stored_weight": "E3M4"})
    found = bench.step(GradStiffness(), {"0.weight": [[31.0, 1 + 1 / 64, 1 + 1 / 32, -1 - 1 / 40]]})
    assert found["stored_update_below_share"] == pytest.approx(2 / 3)
    assert found["stored_update_below_share/0"] == pytest.approx(2 / 3)


def test_updates_of_masters():
    """A view's update is that of the float32 master, at the scale of the forward pass."""
    bench = Bench(nn.Sequential(linear(1.0, 8.0)), {"layers": {"0": E7M0}})
    found = bench.step(GradStiffness(), {"0.weight": [[1.6, 11.0]]})
    assert found["view_update_below_share"] == 0.5


def test_an_unquantized_model_has_no_measures():
    bench = Bench(nn.Sequential(linear(1.0, 2.0)), {})
    assert bench.gradients(GradStiffness()) == {}
    assert bench.step(GradStiffness(), {"0.weight": [[1.0, 1.0]]}) == {}


@pytest.mark.parametrize(("recipe", "kind"), [("pure", "stored"), ("master", "view")])
def test_in_a_run(start, recipe, kind):
    """Raw gradients are compared: clipping changes nothing in the measures before the update."""
    plugin = ["grad-stiffness"]
    settings = {"format": "E3M4", "recipe": recipe, "grad-stiffness__interval": 2, "max_steps": 2}
    first, clipped = start(plugin, grad_clip=1e-3, **settings).diagnostics_history
    _, plain = start(plugin, grad_clip=0.0, **settings).diagnostics_history
    assert (first["step"], clipped["step"]) == (1, 2)
    assert -1 <= clipped[f"grad-stiffness/{kind}_correlation"] <= 1
    assert 0 < clipped[f"grad-stiffness/{kind}_update_below_share"] <= 1
    assert f"grad-stiffness/{kind}_ratio/transformer.h.0.mlp.c_fc" in clipped
    ratios = [line[f"grad-stiffness/{kind}_ratio"] for line in (clipped, plain)]
    assert ratios[0] == pytest.approx(ratios[1], rel=0.2)
