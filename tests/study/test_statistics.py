"""Intervals, corrections and shares: against scipy, hand computation and their own sums."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from altcore.study.sequential import estimate_at
from altcore.study.statistics import (
    dividends,
    estimate,
    holm,
    shapley,
    share_closed,
    subsets,
)

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


def test_the_share_that_is_closed_has_the_interval_of_a_ratio():
    """At its ends, and only there, what is left is just told from that share of what was."""
    before, after = [1.0, 1.3, 0.8, 1.1], [0.3, 0.5, 0.1, 0.4]
    found = share_closed(after, before)
    assert found.mean == pytest.approx(1 - sum(after) / sum(before))
    for end in (found.low, found.high):
        left = [a - (1 - end) * b for a, b in zip(after, before, strict=True)]
        assert stats.ttest_1samp(left, 0.0).pvalue == pytest.approx(0.05)
    assert found.low < found.mean < found.high
    # Of an early look p counts as often as its share of the error is in all of it.
    early = share_closed(after, before, 0.05 * 0.216)
    assert early.p == pytest.approx(found.p / 0.216)
    assert early.low < found.low
    # No share of a gap that is not told from 0, and none of a lead.
    assert share_closed(after, [1.0, -1.2, 0.8, 1.1]) is None
    assert share_closed(after, [-b for b in before]) is None


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


@given(st.lists(st.floats(-5, 5), min_size=7, max_size=7))
def test_shares_and_effects_sum_to_the_gap(values):
    """Whatever the eight arms are."""
    gaps = dict(zip(subsets("FBU"), [0.0, *values], strict=True))
    whole = gaps[frozenset("FBU")]
    assert sum(dividends(gaps).values()) == pytest.approx(whole, abs=1e-9)
    assert sum(shapley(gaps).values()) == pytest.approx(whole, abs=1e-9)


def test_shapley_of_what_adds_up():
    """Without interactions each factor's share is its own gap; a shared one is split evenly."""
    own = {"F": 0.1, "B": 0.0, "U": 0.7}
    adding = {s: sum(own[f] for f in s) for s in subsets("FBU")}
    assert shapley(adding) == pytest.approx(own)
    effects = dividends(adding)
    assert all(abs(v) < 1e-12 for s, v in effects.items() if len(s) > 1)
    both = {s: 1.0 if {"F", "B"} <= s else 0.0 for s in subsets("FBU")}
    assert shapley(both) == pytest.approx({"F": 0.5, "B": 0.5, "U": 0.0})
