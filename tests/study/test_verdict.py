"""Verdicts say what intervals allow, and no more; the reason says what is missing."""

import math

import numpy as np
import pytest

from altcore.estimates import LEVEL, estimate, quantile
from altcore.study.sequential import estimate_at, looks, once
from altcore.study.statistics import plain
from altcore.study.verdict import Evidence, seeds_needed

WITHIN = 0.05
NOT_AHEAD = "not distinguishable from the frozen control"


def row(low, high, n=5):
    """An estimate by its interval."""
    return {"mean": (low + high) / 2, "low": low, "high": high, "n": n}


def evidence(gap, ahead=(0.2, 0.6), frozen=(0.5, 1.0), p=0.01, **counts):
    """What a verdict rests on: intervals of the gap, of the lead and of the control."""
    counts = {"seeds": 5, "diverged": 0, "learned": 5, "twin_learned": 5, **counts}
    return Evidence(gap=row(*gap), p=p, ahead=row(*ahead), frozen=row(*frozen), **counts)


@pytest.mark.parametrize(
    ("given", "verdict", "reason"),
    [
        (evidence((-0.01, 0.04)), "within", "not distinguishable from the twin"),
        (evidence((0.01, 0.05)), "within", "worse than the twin"),
        (evidence((0.01, 0.04), p=0.2), "within", "not distinguishable from the twin"),
        (evidence((-0.2, -0.1)), "within", "better than the twin"),
        (evidence((-0.2, -0.1), p=0.2), "within", "not distinguishable from the twin"),
        (evidence((0.06, 0.2)), "beyond", "learns, but less"),
        (evidence((0.4, 0.9), (-0.1, 0.2)), "beyond", NOT_AHEAD),
        (evidence((-0.1, 0.04), (-0.1, 0.2)), "cannot tell", NOT_AHEAD),
        (
            evidence((0.01, 0.2)),
            "cannot tell",
            "the interval contains 0.05: about 10 seeds are needed",
        ),
        (
            evidence((-0.01, 0.11), detectable=0.08),
            "cannot tell",
            "the interval contains 0.05, and chaos alone hides gaps below 0.08: "
            "more than 100 seeds are needed",
        ),
        (
            evidence((0.06, 0.2), frozen=(-0.1, 0.4)),
            "cannot tell",
            "the twin is not ahead of the frozen control",
        ),
        (evidence((0.0, 0.1), diverged=1), "beyond", "diverged in 1 of 5 seeds"),
        (
            evidence((-0.05, 0.16), learned=4),
            "cannot tell",
            "did not learn in 1 of 5 seeds, and the interval contains 0.05",
        ),
        (
            evidence((0.01, 0.04), learned=4),
            "cannot tell",
            "did not learn in 1 of 5 seeds, but the interval ends at 0.04",
        ),
        (evidence((0.06, 0.2), learned=4), "beyond", "did not learn in 1 of 5 seeds"),
        (evidence((0.4, 0.9), (-0.1, 0.2), learned=1), "beyond", "did not learn in 4 of 5 seeds"),
        (evidence((-0.1, 0.2), learned=0), "beyond", "did not learn in 5 of 5 seeds"),
        (
            evidence((0.06, 0.2), twin_learned=3, learned=0, diverged=2),
            "cannot tell",
            "the twin did not learn in 2 of 5 seeds",
        ),
    ],
)
def test_verdicts_say_what_intervals_allow(given, verdict, reason):
    """Within the distance or beyond it, by the ends of the interval and not by its width."""
    assert given.judge(WITHIN) == {"verdict": verdict, "reason": reason}


@pytest.mark.parametrize(
    ("given", "is_settled"),
    [
        (evidence((-0.01, 0.04)), True),
        (evidence((0.06, 0.2)), True),
        (evidence((-0.05, 0.16)), False),
        (evidence((-0.05, 0.16), diverged=1), True),
        (evidence((-0.05, 0.16), twin_learned=4), True),
        (evidence((0.01, 0.04), learned=4), False),
        (evidence((-0.05, 0.16), learned=0), False),
        (evidence((0.06, 0.2), learned=4), True),
    ],
)
def test_what_was_learned_settles_nothing_by_itself(given, is_settled):
    """An arm that missed the bar with some of its first seeds goes on, as its verdict may."""
    assert given.is_settled(WITHIN) is is_settled


def test_better_and_worse_are_told_by_one_rule():
    """An interval beside 0 is not enough either way: the corrected p decides too."""
    assert evidence((0.01, 0.04)).is_worse
    assert not evidence((0.01, 0.04), p=0.06).is_worse
    assert evidence((-0.04, -0.01)).is_better
    assert not evidence((-0.04, -0.01), p=0.06).is_better
    assert evidence((-0.04, -0.01), diverged=1).is_worse


@pytest.mark.parametrize("schedule", [looks, once])
def test_the_seeds_that_are_needed_would_tell(schedule):
    """So many values of the same mean and spread leave the distance out, and one fewer do not.

    That is so after the early looks of the larger study have had their share of the error.
    """
    values = [0.02, 0.05, 0.03, 0.08, 0.02]
    needed = seeds_needed(plain(estimate_at(values, schedule(5))), 0.07, schedule)

    def high(count):
        many = np.resize(np.array([-1.0, 1.0]), count)
        scaled = (many - many.mean()) / many.std(ddof=1) * np.std(values, ddof=1)
        return estimate_at(list(np.mean(values) + scaled), schedule(count)).high

    assert high(needed) < 0.07 < high(needed - 1)
    assert seeds_needed(plain(estimate([0.1])), 0.05) is None


@pytest.mark.parametrize("schedule", [looks, once])
@pytest.mark.parametrize("distance", [1.2, 0.6])
def test_about_half_of_the_studies_with_so_many_seeds_tell(schedule, distance):
    """By simulation, of an arm as good as its twin; distances are in standard deviations."""
    half = quantile(1 - LEVEL * schedule(5)[5] / 2, 4) / math.sqrt(5)
    needed = seeds_needed(row(-half, half), distance, schedule)
    gaps = np.random.default_rng(5).normal(size=(4000, needed))
    told = np.zeros(len(gaps), dtype=bool)
    for n, share in schedule(needed).items():
        spread = gaps[:, :n].std(axis=1, ddof=1) / math.sqrt(n)
        told |= (
            gaps[:, :n].mean(axis=1) + spread * quantile(1 - LEVEL * share / 2, n - 1) < distance
        )
    assert 0.45 < told.mean() < 0.65
