"""Arms that stop before their last seed, once their verdict is settled, at the stated error rates.

A study looks at its arms after some of their seeds and after all. Each look has a share of the
error, given to it beforehand, and the shares sum to 1. At a look whose share is w, an interval has
the level 1 - w LEVEL, and p counts 1 / w times.

Whatever stops an arm at a look (its own data, those of others, a user), the interval there misses
the truth with a probability of at most LEVEL: it is one of the intervals of all looks, and by
Boole's inequality these miss it anywhere with at most the sum of w LEVEL. They are the repeated
confidence intervals of Jennison and Turnbull (JRSS B 51, 1989). By the same inequality p there is
below u with a probability of at most u, if there is no difference. Holm's method asks no more of
the p values of a table, so its family-wise error stays, too (Ye, Li, Liu and Yao, Statistics in
Medicine 32, 2013). Nothing is assumed of how arms or looks depend on one another; of the
differences of one arm only what Student's t assumes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

from attrs import evolve

from altcore.estimates import LEVEL, Estimate, estimate

A = TypeVar("A")
Schedule = Callable[[int], Mapping[int, float]]
"""Takes a study's number of seeds; returns the numbers at which it looks, with their shares."""

FEWEST = 3
"""Seeds of the first look: with two, Student's t tells nothing that differs by less than 100
standard deviations."""
BETWEEN = 0.6
"""A look comes at this share of the next one's seeds."""
POWER = 3
"""The error that is spent grows with this power of the seeds (Kim and DeMets, Biometrika 74, 1987):
little at first, where only large differences can be told."""


def looks(seeds: int) -> dict[int, float]:
    """Return the numbers of seeds at which a study looks, and the share of the error of each.

    >>> {n: round(share, 3) for n, share in looks(5).items()}
    {3: 0.216, 5: 0.784}
    >>> looks(4), list(looks(10))
    ({4: 1.0}, [4, 6, 10])
    """
    at = [seeds]
    while (earlier := round(BETWEEN * at[0])) >= FEWEST:
        at.insert(0, earlier)
    spent = [(n / seeds) ** POWER for n in at]
    return dict(zip(at, [spent[0], *(b - a for a, b in pairwise(spent))], strict=True))


def once(seeds: int) -> dict[int, float]:
    """Return the only look of a study that runs all seeds, with the whole error."""
    return {seeds: 1.0}


def estimate_at(values: Sequence[float], shares: Mapping[int, float]) -> Estimate:
    """Return what is known at the look of so many values, as `estimate` does without looks."""
    share = shares[len(values)]
    found = estimate(values, 1 - LEVEL * share)
    return evolve(found, p=min(found.p / share, 1.0))  # in this order NaN stays


def run_in_looks(
    arms: Iterable[A],
    shares: Mapping[int, float],
    run: Callable[[Sequence[A], int], None],
    unsettled: Callable[[Sequence[A]], Sequence[A]],
) -> None:
    """Run arms from look to look, without those that are settled.

    Args:
        arms: that begin.
        shares: as of `looks`.
        run: makes the runs that some arms lack for so many seeds.
        unsettled: returns the arms, of those that ran, for which further seeds can matter.
    """
    left: Sequence[A] = list(arms)
    for seeds in shares:
        if left:
            run(left, seeds)
            left = unsettled(left)
