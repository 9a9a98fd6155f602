"""The verdicts of the loss-slope study: estimates against scipy, and the hypotheses' rules."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from altcore_reporters.slope_study.estimates import pearson, share, spearman
from altcore_reporters.slope_study.hypotheses import (
    Limits,
    Result,
    first_hypothesis,
    results_of,
    second_hypothesis,
)

PAIRS = st.lists(st.tuples(*[st.integers(-50, 50).map(float)] * 2), min_size=4, max_size=30).filter(
    lambda pairs: all(len(set(own)) > 1 for own in zip(*pairs, strict=True))
)


@given(st.integers(0, 200), st.integers(1, 200))
def test_a_share_has_the_exact_interval(hits, n):
    hits = min(hits, n)
    found = share(hits, n)
    expected = stats.binomtest(hits, n).proportion_ci(0.95, "exact")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert found.value == hits / n


@given(PAIRS)
def test_correlations_are_scipys(pairs):
    x, y = zip(*pairs, strict=True)
    found, expected = pearson(x, y), stats.pearsonr(x, y)
    assert found.value == pytest.approx(expected.statistic, abs=1e-9)
    if abs(found.value) < 1 - 1e-9:
        bounds = expected.confidence_interval()
        assert (found.low, found.high) == pytest.approx((bounds.low, bounds.high), abs=1e-7)
    assert spearman(x, y).value == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-9)


@pytest.mark.parametrize("estimate", [pearson, spearman])
def test_an_interval_covers_as_often_as_it_says(estimate):
    """In 400 samples of 40 pairs whose correlation is 0.6, in 95 % within 2.5 %."""
    import numpy as np

    generator = np.random.default_rng(0)
    truth = 0.6 if estimate is pearson else 6 / math.pi * math.asin(0.3)  # of a normal pair
    hits = 0
    for _ in range(400):
        x = generator.standard_normal(40)
        y = 0.6 * x + 0.8 * generator.standard_normal(40)
        found = estimate(x.tolist(), y.tolist())
        hits += found.low <= truth <= found.high
    assert hits / 400 == pytest.approx(0.95, abs=0.025)


def test_what_cannot_be_told():
    assert math.isnan(pearson([], []).value)
    assert math.isnan(pearson([1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 3.0, 4.0]).value)
    few = pearson([1.0, 2.0, 3.0], [1.0, 2.0, 4.0])
    assert few.value > 0.9
    assert math.isnan(few.low)
    assert math.isnan(share(0, 0).value)


def result(variant="base", r_squared=0.99, alpha=-0.1, val=0.5, name="run"):
    return Result(
        run_id=name, variant=variant, r_squared=r_squared, alpha_early=alpha, best_val_ce=val
    )


@pytest.mark.parametrize(
    ("hits", "n", "holds", "is_certain"),
    [
        (216, 216, True, True),
        (200, 216, True, False),
        (90, 100, False, False),  # more than 90 % is asked for
        (91, 100, True, False),
        (60, 100, False, True),
    ],
)
def test_the_first_hypothesis(hits, n, holds, is_certain):
    runs = [result(r_squared=0.98 if i < hits else 0.9799) for i in range(n)]
    (found,) = first_hypothesis(runs, Limits())
    assert (found.holds, found.is_certain) == (holds, is_certain)
    assert found.estimate.value == hits / n


def test_a_run_that_was_not_fitted_counts_against_it():
    runs = [result(r_squared=1.0)] * 8 + [result(r_squared=None)] * 2
    (found,) = first_hypothesis(runs, Limits())
    assert (found.estimate.value, found.left_out, found.holds) == (0.8, 2, False)


def test_the_second_hypothesis_over_all_and_by_variant():
    """One variant follows it, the other one does the contrary; a run without a value is counted."""
    runs = [result(alpha=-0.1 * i, val=1 - 0.1 * i + 0.01 * (i % 2)) for i in range(10)]
    runs += [result("other", alpha=-0.1 * i, val=0.1 * i + 0.01 * (i % 2)) for i in range(10)]
    runs += [result("other", alpha=None), result("few", alpha=0.0)]
    every, base, other, few = second_hypothesis(runs, Limits())
    assert (every.of, every.holds, every.left_out) == ("all", False, 1)
    assert (base.holds, base.is_certain, base.word) == (True, True, "holds")
    assert base.beside.value > 0.9
    assert (other.holds, other.estimate.n, other.left_out) == (False, 10, 1)
    assert (few.holds, few.word) == (None, "cannot be told")


def test_a_result_that_is_near_the_limit_says_so():
    runs = [result(alpha=-0.1 * i, val=-0.1 * i + 0.4 * (i % 3)) for i in range(8)]
    (found,) = second_hypothesis(runs, Limits())
    assert found.word.endswith("but the interval has the limit in it")


def test_rows_of_a_table():
    rows = [
        {"run_id": "a", "variant": "base", "r_squared": "0.990000", "alpha_early": "",
         "best_val_ce": "nan"},
        {"run_id": 7, "variant": "base", "r_squared": 1, "alpha_early": -0.5, "best_val_ce": 2.0},
    ]  # fmt: skip
    first, second = results_of(rows)
    assert (first.r_squared, first.alpha_early, first.best_val_ce) == (0.99, None, None)
    assert (second.run_id, second.alpha_early) == ("7", -0.5)
    with pytest.raises(ValueError, match="steep"):
        results_of([{**rows[1], "alpha_early": "steep"}])
    with pytest.raises(KeyError, match="variant"):
        results_of([{"run_id": "a"}])
