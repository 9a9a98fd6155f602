"""Shares: against scipy, hand computation and their own sums."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from altcore.study.statistics import dividends, shapley, share_closed, subsets


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
