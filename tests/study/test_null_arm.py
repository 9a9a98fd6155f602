"""The null arm differs from its twin by next to nothing, and says how small a gap can be found."""

import math

import numpy as np
import pytest
import torch

import altcore
from altcore.estimates import LEVEL, quantile
from altcore.recipes import Layer
from altcore.study.cautions import about_chaos
from altcore.study.null_arm import POWER, detectable, null_arm

LAYERS = [Layer("wte", "embedding"), Layer("h.0.qkv", "linear"), Layer("h.0.attn", "attention")]


def test_it_rounds_forward_activations_and_nothing_else():
    """A model without a layer that multiplies them has no null arm."""
    assert {name: list(casts) for name, casts in null_arm(LAYERS).casts.items()} == {
        "h.0.qkv": ["activation@fwd"]
    }
    assert null_arm(LAYERS[:1]) is None


def test_no_weight_of_it_is_on_a_grid():
    """An optimizer that moves weights by steps of their grid would train it as no twin."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    with altcore.quantize_model(model, null_arm([Layer("0", "linear")]).recipe()) as q:
        model(torch.ones(1, 4))
        assert q.grid_of(model[0].weight) is None


@pytest.mark.parametrize(("seeds", "rows"), [(3, 1), (5, 7), (20, 3)])
def test_a_detectable_gap_is_detected_as_often_as_stated(seeds, rows):
    """Gaps of that mean, and of the null arm's spread, are significant with the stated power."""
    made = np.random.default_rng(0).normal(size=(40_000, seeds))
    null = [math.sqrt(seeds - 1), *([0.0] * (seeds - 1))]
    spread = np.std(null, ddof=1)
    gaps = made * spread + detectable(null, seeds, rows)
    t = gaps.mean(1) / gaps.std(1, ddof=1) * math.sqrt(seeds)
    assert np.mean(t > quantile(1 - LEVEL / rows / 2, seeds - 1)) == pytest.approx(POWER, abs=0.01)


def test_more_is_detected_with_more_seeds_and_fewer_rows():
    """And with less chaos: it is as wide as the null arm's gaps spread."""
    null = [0.01, -0.02, 0.03]
    assert detectable(null, 5, 7) > detectable(null, 5, 1) > detectable(null, 9, 1)
    assert detectable([2 * g for g in null], 5, 1) == pytest.approx(2 * detectable(null, 5, 1))


@pytest.mark.parametrize("gaps", [[0.01] * 3, [0.0] * 3, [0.01, math.nan], [math.nan, math.nan]])
def test_gaps_that_do_not_spread_say_nothing_of_chaos(gaps):
    """Nor do those of a twin that diverged; and no caution is made of that."""
    assert math.isnan(detectable(gaps, 5, 7))
    assert about_chaos([{"detectable": math.nan}], 0.05) == []
