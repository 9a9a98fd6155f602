"""Stopping early: the shares of the error, and by simulation the rates that they promise."""

import math
import random

import pytest

from altcore.estimates import LEVEL, estimate, holm
from altcore.study.sequential import estimate_at, looks, run_in_looks
from altcore.study.verdict import Evidence

WITHIN = 0.5
"""In standard deviations over the seeds, as all gaps of the simulation are."""
MISSES = 0.2
"""The probability with which a run that trains misses by chance what counts as learned."""
STUDIES = 2000


def table_of(truths, seeds, shares, draw, learns):
    """Run a table of arms whose true gaps are known, and return what is known of each at its stop.

    An arm stops when its verdict is settled, or when it is known to be worse than its twin.
    """
    shared = [draw() for _ in range(seeds)]  # half of the noise is the twin's
    half = math.sqrt(0.5)
    gaps = [[truth + half * (draw() + twin) for twin in shared] for truth in truths]
    learned = [[learns(arm) for _ in range(seeds)] for arm in range(len(truths))]
    rows = {}

    def run(arms, count):
        rows.update({arm: estimate_at(gaps[arm][:count], shares) for arm in arms})

    def found():
        corrected = holm({arm: row.p for arm, row in rows.items()})
        return [
            Evidence(
                gap={"mean": row.mean, "low": row.low, "high": row.high, "n": row.n},
                p=corrected[arm],
                frozen={"low": 1.0},
                ahead={"low": 1.0},
                seeds=row.n,
                diverged=0,
                learned=sum(learned[arm][: row.n]),
                twin_learned=row.n,
            )
            for arm, row in sorted(rows.items())
        ]

    def unsettled(arms):
        known = found()
        return [a for a in arms if not (known[a].is_settled(WITHIN) or known[a].is_worse)]

    run_in_looks(range(len(truths)), shares, run, unsettled)
    return found()


def error_rates(studies, seeds, shares):
    """Return how often studies err, as shares of the studies or of their arms.

    Two arms are as good as the twin, one is exactly `WITHIN` worse, and one far worse. One of the
    first two misses with one seed in five what counts as learned.
    """
    made = random.Random(17)
    truths = [0.0, 0.0, WITHIN, 6.0]
    rates = dict.fromkeys(["guilty", "within", "beyond", "unlearned", "missed"], 0.0)
    stopped = 0
    for _ in range(studies):
        arms = table_of(
            truths,
            seeds,
            shares,
            lambda: made.gauss(0.0, 1.0),
            lambda arm: arm != 1 or made.random() >= MISSES,
        )
        rates["guilty"] += any(arm.p < LEVEL for arm in arms[:2])
        edge = arms[2].judge(WITHIN)["verdict"]
        rates["within"] += edge == "within"
        rates["beyond"] += edge == "beyond"
        rates["unlearned"] += arms[1].judge(WITHIN)["verdict"] == "beyond"
        rows = [arm.gap for arm in arms]
        missed = sum(not r["low"] <= t <= r["high"] for r, t in zip(rows, truths, strict=True))
        rates["missed"] += missed / len(truths)
        stopped += rows[3]["n"] < seeds
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
    assert rates["unlearned"] <= at_most(LEVEL / 2, studies)
    assert rates["missed"] <= at_most(LEVEL, studies)
    assert stopped > 0.05


def test_stopping_early_keeps_the_error_rates():
    """False 'worse than the twin' in a table, false 'within' and 'beyond', and coverage.

    Runs that miss by chance what counts as learned make no arm 'beyond'.
    """
    check_rates(STUDIES, 5)


def test_looks_without_shares_would_not_keep_them():
    """The simulation sees what the rule prevents: each look at the full level."""
    studies = STUDIES // 2
    rates, _ = error_rates(studies, 8, dict.fromkeys(range(3, 9), 1.0))
    assert rates["within"] > at_most(LEVEL / 2, studies)
    assert rates["missed"] > at_most(LEVEL, studies)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 4, 5, 8, 10, 20])
def test_stopping_early_keeps_the_error_rates_of_many_studies(seeds):
    """For other numbers of seeds, and many more studies."""
    studies = 15 * STUDIES
    rates, _ = error_rates(studies, seeds, looks(seeds))
    assert rates["guilty"] <= at_most(LEVEL, studies)
    told = [rates[key] for key in ("within", "beyond", "unlearned")]
    assert max(told) <= at_most(LEVEL / 2, studies)
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
