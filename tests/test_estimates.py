"""Intervals and corrections: against scipy and hand computation."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from altcore.estimates import estimate, holm, welch
from altcore.study.sequential import estimate_at

NUMBERS = st.lists(st.floats(-10, 10), min_size=2, max_size=9).filter(lambda x: len(set(x)) > 1)


@given(NUMBERS)
def test_intervals_are_students(values):
    """Mean, ends and p are those of scipy's one-sample t test."""
    if max(values) - min(values) < 1e-3:
        return
    found = estimate(values)
    expected = stats.ttest_1samp(values, 0.0)
    low, high = expected.confidence_interval(0.95)
    assert found.mean == pytest.approx(sum(values) / len(values), abs=1e-12)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.p == pytest.approx(expected.pvalue, abs=1e-12)


def test_a_difference_of_two_sides_is_welchs_whatever_its_unit():
    """As scipy's test of unequal variances; also where squares of squares are no float any more."""
    a, b = [1.0, 3.0], [2.0, 4.0, 6.0, 9.0]
    expected = stats.ttest_ind(b, a, equal_var=False)
    for unit in (1.0, 1e-100, 1e100):
        found = welch([x * unit for x in a], [x * unit for x in b])
        assert found.p == pytest.approx(expected.pvalue)
        ends = (x * unit for x in expected.confidence_interval(0.95))
        assert (found.low, found.high) == tuple(map(pytest.approx, ends))
    # One side may be without a spread, but not both.
    still = stats.ttest_1samp(b, 1.0)
    assert welch([1.0, 1.0], b).p == pytest.approx(still.pvalue)
    for other in ([2.0, 2.0], [2.0], [1e200, 3e200], [math.inf, 0.0]):
        assert math.isnan(welch([1.0, 1.0], other).p)
    same = welch([1.0, 1.0], [1.0] * 3)
    assert (same.low, same.high, same.p, same.n) == (0.0, 0.0, 1.0, 2)


def test_too_few_values_conclude_nothing():
    """One value has no ends, nor have equal ones, unless they are 0; nor what is not finite."""
    assert math.isnan(estimate_at([0.1] * 3, {3: 0.216}).p)
    too_large, too_small = [1e308] * 2, [1e-170, 2e-170]
    for values in (
        *([0.3], [0.0], [0.1] * 3, [0.5, math.nan], [math.inf, -math.inf]),
        *(too_large, too_small, [1e-150, math.nextafter(1e-150, 1)]),
        [0.9 - 0.8, 0.8 - 0.7, 0.7 - 0.6],  # equal but for a rounding error
        [3.0 + 1e-5 - 3.0, 2.0 + 1e-5 - 2.0],
    ):
        found = estimate(values)
        assert (found.low, found.high) == (-math.inf, math.inf)
        assert math.isnan(found.p)
    zero = estimate([0.0, 0.0])
    assert (zero.low, zero.high, zero.p) == (0.0, 0.0, 1.0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_its_definition(ps):
    """The k-th smallest times (n - k), never below one before it, at most 1."""
    given_ps = dict(enumerate(ps))
    found = holm(given_ps)
    order = sorted(ps)
    for i, p in enumerate(ps):
        rank = max(j for j, q in enumerate(order) if q == p)
        expected = max(min(1.0, q * (len(ps) - j)) for j, q in enumerate(order[: rank + 1]))
        assert found[i] >= p
        assert found[i] == pytest.approx(expected)


def test_holm_leaves_out_what_is_missing():
    """NaN stays NaN, and costs the others nothing."""
    found = holm({"a": 0.02, "b": math.nan})
    assert found["a"] == 0.02
    assert math.isnan(found["b"])
