"""Means and their differences over seeds, with intervals by Student's t.

Runs of one seed see the same batches and start from the same weights, so two contenders are
compared seed by seed where at least two seeds are common (paired). Otherwise the two means are
compared with Welch's degrees of freedom. Several runs of one seed count as their mean. One seed
says nothing about the next one: an interval that rests on fewer than two is infinite. Seeds that
all have the same value are one run, as if the seed decided nothing: no difference is told by them,
nor by paired differences that are all the same, unless they are 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from attrs import asdict, evolve, frozen

from altcore.plugin import Estimate, estimate, have_spread, welch

PAIRED, WELCH = "paired", "Welch"

Values = Mapping[object, Sequence[float]]
"""A metric's finite values by seed; those whose seed is not known are under None."""


@frozen
class Interval(Estimate):
    """A mean, or a difference of two; its n counts pairs of seeds, or those of the smaller side."""

    method: str = ""

    @property
    def excludes_zero(self) -> bool:
        """Whether the mean is told from 0."""
        return self.low > 0 or self.high < 0

    def scaled(self, factor: float) -> Interval:
        """Return mean and interval times a factor."""
        mean, *ends = (x * factor + 0.0 for x in (self.mean, self.low, self.high))  # no -0
        return evolve(self, mean=mean, low=min(ends), high=max(ends))


_UNKNOWN = Interval(math.nan, math.nan, math.nan, math.nan, 0)


def interval_of(values: Sequence[float]) -> Interval:
    """Return the mean of some values with its interval, as `altcore.plugin.estimate` does.

    The mean of no value is NaN, and so is its interval.

    >>> found = interval_of([1.0, 2.0, 3.0])
    >>> round(found.low, 3), round(found.high, 3)
    (-0.484, 4.484)
    """
    return Interval(**asdict(estimate(values))) if values else _UNKNOWN


def common_seeds(*values: Values) -> tuple[object, ...]:
    """Return the seeds that all of several contenders have; none if these are fewer than two.

    >>> common_seeds({1: [2.0], 2: [3.0], 3: [9.0]}, {2: [4.0], 1: [2.5], None: [7.0]})
    (1, 2)
    """
    first, *others = values or ({},)
    found = [k for k in first if k is not None and all(k in other for other in others)]
    return tuple(found) if len(found) > 1 else ()


def comparable(*values: Values) -> Sequence[Values]:
    """Return the values of several contenders in their common seeds; all values if there are none.

    Otherwise an easy seed that one of them lacks would speak for the others.
    """
    seeds = common_seeds(*values)
    return [{seed: own[seed] for seed in seeds} for own in values] if seeds else values


def difference(first: Values, second: Values) -> Interval:
    """Return the mean of the second minus that of the first, by seed if that is possible."""
    if seeds := common_seeds(first, second):
        pairs = [estimate(second[k]).mean - estimate(first[k]).mean for k in seeds]
        return evolve(interval_of(pairs), method=PAIRED)
    a, b = seed_means(first), seed_means(second)
    found = Interval(**asdict(welch(a, b))) if a and b else _UNKNOWN
    return evolve(found, method=WELCH)


def seed_means(values: Values) -> list[float]:
    """Return one value a seed, the mean of its runs; each run of an unknown seed has its own.

    >>> seed_means({1: [1.0, 3.0], 2: [5.0], None: [7.0, 8.0]})
    [2.0, 5.0, 7.0, 8.0]
    """
    known = [estimate(own).mean for seed, own in values.items() if seed is not None]
    return [*known, *values.get(None, ())]


def is_one_run(values: Values) -> bool:
    """Whether several seeds have the same value, as those of a workload that ignores its seed.

    >>> is_one_run({1: [2.0], 2: [2.0]}), is_one_run({1: [2.0], 2: [3.0]}), is_one_run({1: [2.0]})
    (True, False, False)
    """
    means = seed_means(values)
    return len(means) > 1 and not have_spread(means)
