"""Means and their differences over seeds, with intervals by Student's t.

Runs of one seed see the same batches and start from the same weights, so two contenders are
compared seed by seed where at least two seeds are common (paired). Otherwise the two means are
compared with Welch's degrees of freedom. Several runs of one seed count as their mean. One seed
says nothing about the next one: an interval that rests on fewer than two is infinite. Seeds that
all have the same value are one run, as if the seed decided nothing: no difference is told by them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from attrs import evolve, frozen

LEVEL = 0.95
"""How sure an interval is."""
PAIRED, WELCH = "paired", "Welch"

Values = Mapping[object, Sequence[float]]
"""A metric's finite values by seed; those whose seed is not known are under None."""


@frozen
class Interval:
    """A mean, or a difference of two, with its interval."""

    mean: float
    low: float
    high: float
    p: float
    """Two-sided probability of a mean as far from 0, were it 0; NaN if it cannot be told."""
    n: int
    """Seeds that were paired, or those of the smaller side."""
    method: str = ""

    @property
    def excludes_zero(self) -> bool:
        """Whether the mean is told from 0."""
        return self.low > 0 or self.high < 0

    def scaled(self, factor: float) -> Interval:
        """Return mean and interval times a factor."""
        mean, *ends = (x * factor + 0.0 for x in (self.mean, self.low, self.high))  # no -0
        return Interval(mean, min(ends), max(ends), self.p, self.n, self.method)


def interval_of(values: Sequence[float]) -> Interval:
    """Return the mean of some values with its interval, n - 1 degrees of freedom.

    The mean of no value is NaN, and so is its interval. Equal values have one of no width.

    >>> found = interval_of([1.0, 2.0, 3.0])
    >>> round(found.low, 3), round(found.high, 3)
    (-0.484, 4.484)
    """
    n = len(values)
    mean = math.fsum(values) / n if n else math.nan
    if n < 2:
        return _unbounded(mean, n)
    return _student(mean, _variance(values) / n, n - 1, n)


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
    seeds, (a, b) = common_seeds(first, second), map(seed_means, (first, second))
    if is_one_run(first) and is_one_run(second) and a[0] != b[0]:
        return _unbounded(b[0] - a[0], min(len(a), len(b)), PAIRED if seeds else WELCH)
    if seeds:
        found = interval_of([_mean(second[k]) - _mean(first[k]) for k in seeds])
        return evolve(found, method=PAIRED)
    n = min(len(a), len(b))
    mean = _mean(b) - _mean(a) if n else math.nan
    if n < 2:
        return _unbounded(mean, n, WELCH)
    parts = [_variance(x) / len(x) for x in (a, b)]
    spread = math.fsum(parts)
    # Welch-Satterthwaite. Without any spread the degrees of freedom do not matter.
    weights = [part**2 / (len(x) - 1) for part, x in zip(parts, (a, b), strict=True)]
    degrees = spread**2 / math.fsum(weights) if math.fsum(weights) else n - 1
    return _student(mean, spread, degrees, n, WELCH)


def seed_means(values: Values) -> list[float]:
    """Return one value a seed, the mean of its runs; each run of an unknown seed has its own.

    >>> seed_means({1: [1.0, 3.0], 2: [5.0], None: [7.0, 8.0]})
    [2.0, 5.0, 7.0, 8.0]
    """
    known = [_mean(own) for seed, own in values.items() if seed is not None]
    return [*known, *values.get(None, ())]


def is_one_run(values: Values) -> bool:
    """Whether several seeds have the same value, as those of a workload that ignores its seed.

    >>> is_one_run({1: [2.0], 2: [2.0]}), is_one_run({1: [2.0], 2: [3.0]}), is_one_run({1: [2.0]})
    (True, False, False)
    """
    means = seed_means(values)
    return len(means) > 1 and len({*means}) == 1


def holm(ps: Sequence[float]) -> list[float]:
    """Return p values corrected for their number by Holm's step-down method (Holm 1979).

    NaN stays NaN, and does not count.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    known = sorted((p, i) for i, p in enumerate(ps) if not math.isnan(p))
    corrected, largest = list(ps), 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        corrected[place] = largest
    return corrected


def _unbounded(mean: float, n: int, method: str = "") -> Interval:
    """Return the interval of a mean of one value, or of none."""
    half = math.inf if n else math.nan
    return Interval(mean, -half, half, math.nan, n, method)


def _student(
    mean: float, squared_error: float, degrees: float, n: int, method: str = ""
) -> Interval:
    """Return an interval by Student's t, given the square of the mean's standard error."""
    if squared_error == 0:
        return Interval(mean, mean, mean, 1.0 if mean == 0 else 0.0, n, method)
    from scipy.special import stdtr, stdtrit  # Student's t; scipy.stats takes long to import

    error = math.sqrt(squared_error)
    half = error * float(stdtrit(degrees, (1 + LEVEL) / 2))
    p = 2 * float(stdtr(degrees, -abs(mean) / error))
    return Interval(mean, mean - half, mean + half, p, n, method)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _variance(values: Sequence[float]) -> float:
    mean = _mean(values)
    return math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)
