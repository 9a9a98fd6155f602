"""The diagnostic ``stiffness``: widths worked out by hand on each format's grid."""

import math
from statistics import fmean, pstdev

import pytest
import torch
from helpers_diagnostics import Bench, linear, square
from torch import nn

import altcore
from altcore_diagnostics.stiffness import Stiffness, histogram


def measure(model, recipe):
    return Bench(model, recipe).gradients(Stiffness())


def bins(shares):
    """The bins that hold something, by the exponent of their lower end."""
    return {i - 48: share for i, share in enumerate(shares) if share}


def test_stored_e3m4_by_hand():
    """31, the largest, has the interval below it: 1; 1 has 1/16, 0 the subnormals' 1/64."""
    found = measure(nn.Sequential(linear(31.0, 1.0, -1.0, 0.0)), {"stored_weight": "E3M4"})
    widths = [1, 1 / 16, 1 / 16, 1 / 64]
    assert found["stored_mean"] == found["stored_mean/0"] == fmean(widths)
    assert found["stored_std"] == pytest.approx(pstdev(widths))
    assert bins(found["stored_histogram"]) == {0: 0.25, -4: 0.5, -6: 0.25}
    assert not any(key.startswith("view") for key in found)


def test_view_of_fixed_point_is_as_stiff_everywhere():
    """E0M7 at the scale of the forward pass: amax / 127 for every weight, in one bin."""
    recipe = {"layers": {"0": {"weight@fwd": "E0M7"}}}
    found = measure(nn.Sequential(linear(12.7, -3.0, 0.01, 0.0)), recipe)
    assert found["view_mean"] == pytest.approx(0.1)
    assert found["view_std"] == pytest.approx(0, abs=1e-9)
    assert bins(found["view_histogram"]) == {-4: 1.0}
    assert not any(key.startswith("stored") for key in found)


def test_agrees_with_the_public_function():
    torch.manual_seed(0)
    weights = torch.randn(1, 65)
    model = nn.Sequential(linear(*weights[0].tolist()))
    found = measure(model, {"layers": {"0": {"weight@fwd": "E4M3"}}})
    widths = altcore.stiffness(weights, "E4M3", scale=weights.abs().max() / 448)[0].tolist()
    assert found["view_mean"] == pytest.approx(fmean(widths))
    assert found["view_std"] == pytest.approx(pstdev(widths))


def test_the_aggregate_counts_elements_not_layers():
    """Four weights of width 1 and two of width 2."""
    e7m0 = {"format": "E7M0", "scaling": "none"}
    model = nn.Sequential(square(1.0), linear(2.0, 2.0))
    found = measure(model, {"layers": {"*": {"weight@fwd": e7m0}}})
    assert found["view_mean"] == pytest.approx(8 / 6)
    assert found["view_std"] == pytest.approx(pstdev([1, 1, 1, 1, 2, 2]))
    assert (found["view_mean/0"], found["view_std/1"]) == (1.0, 0.0)
    assert bins(found["view_histogram"]) == pytest.approx({0: 4 / 6, 1: 2 / 6})


def test_the_last_bins_are_open():
    """What is narrower or wider than the bins is in the first or last; NaN in none."""
    width = torch.tensor([2.0**-100, 2.0**-48, 2.0**15, 2.0**40, math.nan])
    counts = histogram(width).tolist()
    assert (counts[0], counts[-1], sum(counts)) == (2, 2, 4)


@pytest.mark.parametrize("lost", [math.nan, math.inf])
def test_what_is_not_finite_is_no_number(lost):
    e7m0 = {"format": "E7M0", "scaling": "none"}
    model = nn.Sequential(square(1.0), linear(1.0, 1.0))
    bench = Bench(model, {"layers": {"*": {"weight@fwd": e7m0}}})
    step = bench.forward()
    with torch.no_grad():
        model[1].weight[0, 0] = lost
    found = bench.measure(Stiffness(), step, "post_backward")
    assert math.isnan(found["view_mean"])
    assert math.isnan(found["view_std/1"])
    assert found["view_mean/0"] == 1.0
    assert bins(found["view_histogram/1"]) == {0: 1.0}


def test_an_unquantized_model_has_no_measures():
    assert measure(nn.Sequential(linear(1.0, 2.0)), {}) == {}


def test_in_a_run(start):
    """It is measured when due, and a histogram is a list in the record."""
    result = start(["stiffness"], format="E3M4", recipe="pure", stiffness__interval=2, max_steps=4)
    assert [line["step"] for line in result.diagnostics_history] == [1, 2, 4]
    for line in result.diagnostics_history:
        assert sum(line["stiffness/stored_histogram"]) == pytest.approx(1)
        assert line["stiffness/stored_mean"] > 0
        assert "stiffness/stored_mean/transformer.h.0.mlp.c_fc" in line
