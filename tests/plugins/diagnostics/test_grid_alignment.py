"""The diagnostic ``grid-alignment``: distances worked out by hand on each format's grid."""

import math
from statistics import fmean, pstdev

import pytest
import torch
from helpers_diagnostics import Bench, linear, square
from torch import nn

import altcore
from altcore_diagnostics.grid_alignment import GridAlignment

E7M0 = {"weight@fwd": {"format": "E7M0", "scaling": "none"}}


def measure(model, recipe):
    return Bench(model, recipe).gradients(GridAlignment())


def test_view_of_e7m0_by_hand():
    """1.25 is seen as 1 in an interval of width 1, 3 as 4 in one of 2; 1 and -4 are values."""
    found = measure(nn.Sequential(linear(1.0, 1.25, 3.0, -4.0)), {"layers": {"0": E7M0}})
    ulps, relative = [0, 0.25, 0.5, 0], [0, 0.2, 1 / 3, 0]
    assert found["view_ulp_mean"] == found["view_ulp_mean/0"] == fmean(ulps)
    assert found["view_ulp_std"] == pytest.approx(pstdev(ulps))
    assert found["view_ulp_max"] == 0.5
    assert found["view_relative_mean"] == pytest.approx(fmean(relative))
    assert found["view_relative_std"] == pytest.approx(pstdev(relative))
    assert found["view_relative_max"] == pytest.approx(1 / 3)
    assert found["view_exact_share"] == 0.5
    assert not any(key.startswith("stored") for key in found)


def test_zero_has_no_relative_distance_and_what_is_flushed_has_one():
    """2^-64 becomes 0, a quarter of the first value: all of it is lost."""
    found = measure(nn.Sequential(linear(0.0, 2.0**-64)), {"layers": {"0": E7M0}})
    assert found["view_relative_mean"] == found["view_relative_max"] == 1
    assert found["view_ulp_max"] == 0.25
    assert found["view_exact_share"] == 0.5


def test_weights_that_are_all_zero():
    """There is no relative distance to tell."""
    found = measure(nn.Sequential(linear(0.0, 0.0)), {"layers": {"0": E7M0}})
    assert math.isnan(found["view_relative_mean"])
    assert math.isnan(found["view_relative_max"])
    assert (found["view_ulp_max"], found["view_exact_share"]) == (0, 1)


def test_beyond_the_largest_value():
    """E2M1 ends at 6, after an interval of 2: 10 is two ULPs away from it."""
    e2m1 = {"weight@fwd": {"format": "E2M1", "scaling": "none"}}
    found = measure(nn.Sequential(linear(10.0, 1.0)), {"layers": {"0": e2m1}})
    assert found["view_ulp_max"] == 2


def test_stored_weights_are_on_their_grid():
    found = measure(nn.Sequential(linear(31.0, 0.7, -0.3)), {"stored_weight": "E3M4"})
    assert (found["stored_ulp_max"], found["stored_relative_max"]) == (0, 0)
    assert found["stored_exact_share"] == 1


def test_the_aggregate_counts_elements_not_layers():
    """Four weights a quarter of an ULP off, two on the grid."""
    model = nn.Sequential(square(1.25), linear(1.0, 1.0))
    found = measure(model, {"layers": {"*": E7M0}})
    assert found["view_ulp_mean"] == pytest.approx(1 / 6)
    assert found["view_ulp_std"] == pytest.approx(pstdev([0.25] * 4 + [0] * 2))
    assert found["view_exact_share"] == pytest.approx(2 / 6)
    assert (found["view_ulp_mean/0"], found["view_ulp_max/1"]) == (0.25, 0)


def test_agrees_with_the_public_functions():
    torch.manual_seed(0)
    weights = torch.randn(1, 65)
    found = measure(
        nn.Sequential(linear(*weights[0].tolist())), {"layers": {"0": {"weight@fwd": "E4M3"}}}
    )
    scale = weights.abs().max() / 448
    error = altcore.grid_error(weights, "E4M3", scale).abs()
    ulps = error / altcore.stiffness(weights, "E4M3", scale)
    assert found["view_ulp_mean"] == pytest.approx(ulps.double().mean())
    assert found["view_relative_mean"] == pytest.approx((error / weights.abs()).double().mean())


@pytest.mark.parametrize("lost", [math.nan, math.inf])
def test_what_is_not_finite_is_no_number(lost):
    model = nn.Sequential(square(1.0), linear(1.0, 1.0))
    bench = Bench(model, {"layers": {"*": E7M0}})
    step = bench.forward()
    with torch.no_grad():
        model[1].weight[0, 0] = lost
    found = bench.measure(GridAlignment(), step, "post_backward")
    for key in ("view_ulp_mean", "view_ulp_max/1", "view_relative_mean/1", "view_relative_max"):
        assert math.isnan(found[key])
    assert found["view_ulp_mean/0"] == 0
    assert found["view_exact_share/1"] == 0.5


def test_an_unquantized_model_has_no_measures():
    assert measure(nn.Sequential(linear(1.0, 2.0)), {}) == {}


@pytest.mark.parametrize(("recipe", "kind"), [("pure", "stored"), ("master", "view")])
def test_in_a_run(start, recipe, kind):
    """Stored weights are on the grid in every step; views are within half an ULP."""
    interval = {"grid-alignment__interval": 2}
    result = start(["grid-alignment"], format="E3M4", recipe=recipe, max_steps=4, **interval)
    assert [line["step"] for line in result.diagnostics_history] == [1, 2, 4]
    for line in result.diagnostics_history:
        is_stored = kind == "stored"
        assert (line[f"grid-alignment/{kind}_exact_share"] == 1) == is_stored
        assert 0 <= line[f"grid-alignment/{kind}_ulp_max"] <= 0.5
        assert f"grid-alignment/{kind}_ulp_mean/transformer.h.0.mlp.c_fc" in line
