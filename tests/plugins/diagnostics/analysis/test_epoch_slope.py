"""The slope of the loss over epochs, against numpy's polyfit and scipy's regression."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from altcore_diagnostics.analysis.epoch_slope import (
    epoch_means,
    finite_mean,
    knee_epoch,
    loss_slope,
)

MEANS = st.dictionaries(st.integers(1, 50), st.floats(0, 10), min_size=2, max_size=50)
ODD = st.sampled_from([math.nan, math.inf, -math.inf])


def test_a_known_slope_in_noise():
    """2 − 0.1x over epochs 5 to 14, a hundred batches each: within 0.01, and that of polyfit."""
    rng = np.random.default_rng(0)
    losses = {e: list(2 - 0.1 * e + rng.normal(0, 0.05, 100)) for e in range(1, 21)}
    slope = loss_slope(epoch_means(losses), 5, 15)
    assert slope == pytest.approx(-0.1, abs=0.01)
    x = range(5, 15)
    assert slope == pytest.approx(np.polyfit(x, [np.mean(losses[e]) for e in x], 1)[0], abs=1e-6)


@settings(max_examples=30)
@given(MEANS)
def test_against_polyfit_and_scipy(means):
    x, y = list(means), list(means.values())
    slope = loss_slope(means, 1)
    assert slope == pytest.approx(np.polyfit(x, y, 1)[0], abs=1e-6)
    assert slope == pytest.approx(stats.linregress(x, y).slope, abs=1e-9)


@settings(max_examples=30)
@given(MEANS, st.integers(1, 50), st.integers(1, 50))
def test_the_window(means, start, end):
    """``start`` is in it, ``end`` is not; what lies outside has no effect."""
    inside = {e: m for e, m in means.items() if e in range(start, end)}
    assert loss_slope(means, start, end) == loss_slope(inside, 1)
    assert (loss_slope(inside, 1) is None) == (len(inside) < 2)


@settings(max_examples=30)
@given(MEANS, st.integers(51, 60), ODD)
def test_an_epoch_without_a_mean_is_left_out(means, epoch, odd):
    assert loss_slope(means | {epoch: odd}, 1) == loss_slope(means, 1)


@settings(max_examples=30)
@given(MEANS, st.floats(-5, 5), st.floats(0.1, 5))
def test_shifted_and_scaled(means, shift, scale):
    slope, other = (
        loss_slope(means, 1),
        loss_slope({e: scale * m + shift for e, m in means.items()}, 1),
    )
    assert other == pytest.approx(scale * slope, abs=1e-9)


def test_early_epochs():
    """Nothing, one epoch, one of many in the window: no slope."""
    assert loss_slope({}, 1) is None
    assert loss_slope({5: 2.0}, 5, 15) is None
    assert loss_slope({1: 3.0, 2: 2.0, 5: 1.0}, 5, 15) is None
    assert loss_slope({5: 2.0, 6: 1.5}, 5, 15) == pytest.approx(-0.5)


@settings(max_examples=30)
@given(st.lists(st.floats(-10, 10), min_size=1), st.lists(ODD))
def test_losses_that_are_not_finite_are_left_out(losses, odd):
    assert finite_mean([*odd, *losses, *odd]) == pytest.approx(np.mean(losses), abs=1e-9)
    assert math.isnan(finite_mean(odd))


def test_missing_data():
    """An epoch of NaN only is missing, one of some is not."""
    means = epoch_means({1: [2.0, math.nan], 2: [math.nan, math.inf], 3: [1.0], 4: []})
    assert means[1] == 2
    assert math.isnan(means[2])
    assert math.isnan(means[4])
    assert loss_slope(means, 1) == pytest.approx(-0.5)


@settings(max_examples=30)
@given(MEANS, st.floats(0, 10))
def test_the_knee(means, threshold):
    knee = knee_epoch(means, threshold)
    assume(knee is not None)
    assert means[knee] <= threshold
    assert all(mean > threshold for epoch, mean in means.items() if epoch < knee)


def test_a_knee_that_is_never_reached():
    assert knee_epoch({}) is None
    assert knee_epoch({1: 1.5, 2: math.nan, 3: 1.01}) is None
    assert knee_epoch({1: 1.5, 2: 1.0, 3: 2.0, 4: 0.5}) == 2
