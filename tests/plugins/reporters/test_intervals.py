"""Means and differences over seeds, held against closed forms and scipy's own tests."""

import math

import pytest
from scipy import stats

from altcore_reporters.intervals import difference, interval_of
from altcore_reporters.leads import lead_of

INFINITE = (-math.inf, math.inf)
T_2 = 4.302652729911275
"""Student's t of 97.5 % and 2 degrees of freedom: sqrt(2 x² / (1 - x²)) with x = 0.95."""


def test_the_quantile_is_that_of_the_closed_form():
    """The other oracles rest on it."""
    assert math.isclose(T_2, math.sqrt(2 * 0.95**2 / (1 - 0.95**2)))


def test_an_interval_by_hand():
    """Standard deviation 1, its error 1/sqrt(3)."""
    found = interval_of([1.0, 2.0, 3.0])
    assert (found.mean, found.n) == (2.0, 3)
    assert found.low == pytest.approx(2 - T_2 / math.sqrt(3))
    assert found.high == pytest.approx(2 + T_2 / math.sqrt(3))


def test_one_value_has_no_interval_and_none_has_no_mean():
    """Nothing can be concluded from one run."""
    found = interval_of([1.5])
    assert (found.mean, found.low, found.high) == (1.5, *INFINITE)
    assert not found.excludes_zero
    assert math.isnan(interval_of([]).mean)
    assert not interval_of([]).excludes_zero


def test_common_seeds_are_paired():
    """By hand: differences 0.5, 0.7 and 0.9. With 2 degrees p is 1 - t / sqrt(2 + t²)."""
    found = difference({1: [1.0], 2: [2.0], 3: [4.0]}, {3: [4.9], 1: [1.5], 2: [2.7]})
    half = T_2 * 0.2 / math.sqrt(3)
    t = 0.7 / (0.2 / math.sqrt(3))
    assert (found.method, found.n) == ("paired", 3)
    assert found.mean == pytest.approx(0.7)
    assert (found.low, found.high) == (pytest.approx(0.7 - half), pytest.approx(0.7 + half))
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t * t))


def test_seeds_that_one_side_lacks_are_left_out_of_the_pairs():
    """A run that crashed must not shift the mean of the others."""
    found = difference({1: [1.0], 2: [2.0], 3: [100.0]}, {1: [2.0], 2: [3.5]})
    assert (found.method, found.n, found.mean) == ("paired", 2, 1.25)


def test_several_runs_of_a_seed_are_one_value():
    """They are not independent."""
    found = difference({1: [1.0, 3.0], 2: [2.0]}, {1: [3.0], 2: [4.0]})
    assert (found.mean, found.n) == (1.5, 2)


def test_a_seed_run_twice_is_one_seed():
    """Without common seeds, too: equal runs of one seed have no spread that tells anything."""
    found = difference({1: [1.0, 1.0]}, {1: [2.0, 2.0]})
    assert (found.mean, found.n, (found.low, found.high)) == (1.0, 1, INFINITE)
    welch = difference({1: [1.0, 3.0], 2: [4.0]}, {3: [5.0], 4: [6.0, 6.0]})
    assert welch == difference({1: [2.0], 2: [4.0]}, {3: [5.0], 4: [6.0]})


@pytest.mark.parametrize("seed", [None, "own"], ids=["unknown seeds", "other seeds"])
def test_without_common_seeds_it_is_welchs(seed):
    """As scipy's test of two samples with unequal variances."""
    a, b = [1.0, 3.0], [2.0, 4.0, 6.0, 9.0]
    first = {None: a} if seed is None else {f"a{x}": [x] for x in a}
    second = {None: b} if seed is None else {f"b{x}": [x] for x in b}
    found = difference(first, second)
    oracle = stats.ttest_ind(b, a, equal_var=False)
    low, high = oracle.confidence_interval(0.95)
    assert (found.method, found.n, found.mean) == ("Welch", 2, 3.25)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.p == pytest.approx(oracle.pvalue)


def test_a_single_common_seed_is_no_pair():
    """The other runs would be thrown away."""
    found = difference({1: [1.0], 2: [2.0]}, {1: [5.0], 3: [6.0]})
    assert (found.method, found.n, found.mean) == ("Welch", 2, 4.0)


def test_one_run_of_a_side_allows_nothing():
    """Whatever the other side has, and one common seed is no pair."""
    for first in ({1: [1.0]}, {None: [1.0]}):
        found = difference(first, {1: [5.0], 2: [6.0], 3: [7.0]})
        assert (found.low, found.high) == INFINITE
        assert not found.excludes_zero
        assert math.isnan(found.p)
    assert math.isnan(difference({}, {1: [5.0]}).mean)


def test_equal_runs_differ_by_exactly_nothing():
    """E0M7 and E1M6 are such: they are not distinguishable, and it is known how little they are."""
    found = difference({1: [1.0], 2: [2.0]}, {1: [1.0], 2: [2.0]})
    assert (found.mean, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)
    assert not found.excludes_zero


def test_seeds_that_are_one_run_tell_no_difference():
    """To the last bit: their workload ignores the seed, and there is no spread to go by."""
    constant = difference({1: [1.0], 2: [1.0], 3: [1.0]}, {1: [2.0], 2: [2.0], 3: [2.0]})
    assert (constant.mean, constant.n) == (1.0, 3)
    assert math.isinf(constant.high)
    assert math.isnan(constant.p)
    assert not constant.excludes_zero
    lead = lead_of({"A": {1: [1.0], 2: [1.0]}, "B": {1: [2.0], 2: [2.0]}}, {})
    assert lead.repeated == ("A", "B")
    assert not lead.is_clear


@pytest.mark.parametrize("rest", [0.0, 1e-12], ids=["exactly", "but for a rounding error"])
def test_a_difference_that_all_seeds_share_is_no_certainty(rest):
    """Two seeds of a coarse metric: no spread to go by, as in a study."""
    first, second = {1: [2.0], 2: [3.0]}, {1: [2.25], 2: [3.25 + rest]}
    found = difference(first, second)
    assert (found.mean, found.n) == (pytest.approx(0.25), 2)
    assert (found.low, found.high) == INFINITE
    assert math.isnan(found.p)
    assert not lead_of({"A": first, "B": second}, {}).is_clear


def test_huge_values_tell_no_difference():
    """Their squares are more than a float holds."""
    for seeds in ((1, 2), (3, 4)):
        second = dict(zip(seeds, ([1e200], [3e200, 1e308, 1e308]), strict=True))
        found = difference({1: [1.0], 2: [2.0]}, second)
        assert (found.low, found.high) == INFINITE
        assert math.isnan(found.p)


def test_scaling_turns_an_interval_around():
    """A loss that falls is an improvement."""
    found = interval_of([1.0, 2.0, 3.0])
    turned = found.scaled(-10)
    assert (turned.mean, turned.low, turned.high) == (-20.0, -10 * found.high, -10 * found.low)
    assert str(interval_of([0.0, 0.0]).scaled(-1).mean) == "0.0"
