"""Stopping early: the shares of the error, and by simulation the rates that they promise."""

import math
import random

import pytest

from altcore.study.sequential import estimate_at, looks, run_in_looks
from altcore.study.statistics import LEVEL, estimate, holm

WITHIN = 0.5
"""In standard deviations over the seeds, as all gaps of the simulation are."""
STUDIES = 3000


def table_of(truths, seeds, shares, draw):
    """Run a table of arms whose true gaps are known, and return its rows after they stopped.

    An arm stops when it is known to be within or beyond `WITHIN`, or worse than its twin.
    """
    shared = [draw() for _ in range(seeds)]  # half of the noise is the twin's
    half = math.sqrt(0.5)
    gaps = [[truth + half * (draw() + twin) for twin in shared] for truth in truths]
    rows = {}

    def run(arms, count):
        rows.update({arm: estimate_at(gaps[arm][:count], shares) for arm in arms})

    def unsettled(arms):
        corrected = holm({arm: row.p for arm, row in rows.items()})
        return [
            a
            for a in arms
            if rows[a].low <= WITHIN < rows[a].high
            and not (rows[a].low > 0 and corrected[a] < LEVEL)
        ]

    run_in_looks(range(len(truths)), shares, run, unsettled)
    corrected = holm({arm: row.p for arm, row in rows.items()})
    return [(rows[arm], corrected[arm]) for arm in range(len(truths))]


def error_rates(studies, seeds, shares):
    """Return how often studies err, as shares of the studies or of their arms.

    Two arms are as good as the twin, one is exactly `WITHIN` worse, and one far worse.
    """
    draw = random.Random(17).gauss
    truths = [0.0, 0.0, WITHIN, 6.0]
    rates = dict.fromkeys(["guilty", "within", "beyond", "missed"], 0.0)
    stopped = 0
    for _ in range(studies):
        rows = table_of(truths, seeds, shares, lambda: draw(0.0, 1.0))
        rates["guilty"] += any(p < LEVEL for _, p in rows[:2])
        edge = rows[2][0]
        rates["within"] += edge.high <= WITHIN
        rates["beyond"] += edge.low > WITHIN
        missed = sum(not r.low <= t <= r.high for (r, _), t in zip(rows, truths, strict=True))
        rates["missed"] += missed / len(truths)
        stopped += rows[3][0].n < seeds
    return {key: count / studies for key, count in rates.items()}, stopped / studies


def at_most(rate, of):
    """Return the largest share that so many studies may show if the rate is true: 4 deviations."""
    return rate + 4 * math.sqrt(rate * (1 - rate) / of)


def check_rates(studies, seeds):
    """All rates are as stated, and an arm that is far worse saves seeds."""
    rates, stopped = error_rates(studies, seeds, looks(seeds))
    assert rates["guilty"] <= at_most(LEVEL, studies)
    assert rates["within"] <= at_most(LEVEL / 2, studies)
    assert rates["beyond"] <= at_most(LEVEL / 2, studies)
    assert rates["missed"] <= at_most(LEVEL, studies)
    assert stopped > 0.05


def test_stopping_early_keeps_the_error_rates():
    """False 'worse than the twin' in a table, false 'within' and 'beyond', and coverage."""
    check_rates(STUDIES, 5)


def test_looks_without_shares_would_not_keep_them():
    """The simulation sees what the rule prevents: each look at the full level."""
    rates, _ = error_rates(STUDIES, 8, dict.fromkeys(range(3, 9), 1.0))
    assert rates["within"] > at_most(LEVEL / 2, STUDIES)
    assert rates["missed"] > at_most(LEVEL, STUDIES)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 4, 5, 8, 10, 20])
def test_stopping_early_keeps_the_error_rates_of_many_studies(seeds):
    """For other numbers of seeds, and ten times as many studies."""
    studies = 10 * STUDIES
    rates, _ = error_rates(studies, seeds, looks(seeds))
    assert rates["guilty"] <= at_most(LEVEL, studies)
    assert max(rates["within"], rates["beyond"]) <= at_most(LEVEL / 2, studies)
    assert rates["missed"] <= at_most(LEVEL, studies)


@pytest.mark.parametrize("seeds", range(2, 40))
def test_the_error_is_spent_once(seeds):
    """Shares sum to 1; the last look, at all seeds, has most of it; no look is at fewer than 3."""
    shares = looks(seeds)
    assert math.isclose(math.fsum(shares.values()), 1.0)
    assert list(shares) == sorted(shares)
    assert list(shares)[-1] == seeds
    assert shares[seeds] > 0.7
    assert min(shares) >= min(seeds, 3)


def test_the_last_look_is_hardly_wider_than_without_others():
    """With five seeds by 9 %."""
    values = [0.1, 0.3, -0.2, 0.4, 0.0]
    alone, last = estimate(values), estimate_at(values, looks(5))
    assert 1 < (last.high - last.low) / (alone.high - alone.low) < 1.09
    assert last.p == pytest.approx(alone.p / 0.784)


def test_p_and_interval_agree():
    """At each look the interval leaves 0 out just when p is below the level."""
    draw = random.Random(3).gauss
    for _ in range(200):
        for seeds in (3, 5):
            found = estimate_at([draw(1.5, 1.0) for _ in range(seeds)], looks(5))
            assert (not found.low <= 0 <= found.high) == (found.p < LEVEL)


def test_only_unsettled_arms_go_on():
    """Each look runs what the one before left; none is made for nothing."""
    made = []
    left = {3: ["b", "c"], 5: ["c"], 8: []}

    def run(arms, seeds):
        made.append((seeds, list(arms)))

    run_in_looks("abc", looks(8), run, lambda _: left[made[-1][0]])
    assert made == [(3, ["a", "b", "c"]), (5, ["b", "c"]), (8, ["c"])]
    made.clear()
    run_in_looks("abc", looks(8), run, lambda _: [])
    assert made == [(3, ["a", "b", "c"])]
