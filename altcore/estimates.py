"""Means and differences over seeds: their intervals by Student's t, and Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

from attrs import frozen

from altcore.errors import BadInput

K = TypeVar("K", bound=Hashable)


LEVEL = 0.05
"""Below which a corrected p tells a difference."""
LARGEST, SMALLEST = 1e150, 1e-130
"""The squares of larger values are more than a float holds; those of a rounding error of smaller
ones are 0."""
ROUNDING = 1e-9
"""Differences that differ by no more than this share of the largest are one number: the losses they
are of, up to a million times as large, are rounded."""


def student() -> Any:
    """Return scipy's functions, Student's t among them. Raises `BadInput` without scipy."""
    try:
        import scipy.special as special  # type: ignore[import-untyped] # it has no annotations
    except ImportError as error:
        raise BadInput("intervals over seeds need scipy: pip install 'altcore[study]'") from error
    return special


@cache
def quantile(level: float, freedom: float) -> float:
    """Return the quantile of Student's t with so many degrees of freedom.

    >>> round(quantile(0.975, 4), 3)
    2.776
    """
    return float(student().stdtrit(freedom, level))


@frozen
class Estimate:
    """A mean, or a difference of two, with its interval by Student's t."""

    mean: float
    low: float
    high: float
    p: float
    """Two-sided probability of a mean as far from 0, were it 0."""
    n: int


def have_spread(values: Sequence[float]) -> bool:
    """Whether some values differ by more than rounding errors, and are not all too small.

    >>> have_spread([0.9 - 0.8, 0.8 - 0.7, 0.7 - 0.6]), have_spread([0.1, 0.1001])
    (False, True)
    """
    largest = max(map(abs, values))
    return largest >= SMALLEST and max(values) - min(values) > ROUNDING * largest


def estimate(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Return mean, interval and p of paired differences, by Student's t with n - 1 degrees.

    Of values that say nothing of the spread the interval is infinite, and p NaN: of a single one,
    of some that are not finite or too large, of those that are all too small, and of those that are
    all the same but for rounding errors, unless they are 0.

    >>> estimate([1.0, 2.0, 3.0]).low.__round__(3)
    -0.484
    """
    n, mean = len(values), _mean(values)
    if n > 1 and not any(values):
        return Estimate(0.0, 0.0, 0.0, 1.0, n)
    if n == 1 or not _are_sane(values) or not have_spread(values):
        return Estimate(mean, -math.inf, math.inf, math.nan, n)
    return _student(mean, _squared_error(values), n - 1, n, level)


def welch(first: Sequence[float], second: Sequence[float], level: float = 0.95) -> Estimate:
    """Return the mean of the second minus that of the first, with Welch's degrees of freedom.

    Its n is that of the smaller side. The interval is infinite, and p NaN, as for `estimate`: if a
    side has a single value, or none has a spread, unless they are equal.

    >>> round(welch([1.0, 3.0], [2.0, 4.0, 6.0, 9.0]).p, 3)
    0.146
    """
    both = first, second
    n, mean = min(map(len, both)), _mean(second) - _mean(first)
    parts = [0.0, 0.0]
    if n > 1 and all(map(_are_sane, both)):
        parts = [_squared_error(x) if have_spread(x) else 0.0 for x in both]
        if mean == 0 and not any(parts):
            return Estimate(0.0, 0.0, 0.0, 1.0, n)
    if not any(parts):
        return Estimate(mean, -math.inf, math.inf, math.nan, n)
    whole = math.fsum(parts)
    shares = [(part / whole) ** 2 / (len(x) - 1) for part, x in zip(parts, both, strict=True)]
    return _student(mean, whole, 1 / math.fsum(shares), n, level)


def _are_sane(values: Sequence[float]) -> bool:
    return all(abs(v) < LARGEST for v in values)


def _mean(values: Sequence[float]) -> float:
    return (math.fsum if _are_sane(values) else sum)(values) / len(values)


def _squared_error(values: Sequence[float]) -> float:
    """Return the square of the mean's standard error."""
    n, mean = len(values), _mean(values)
    return math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n


def _student(mean: float, squared_error: float, freedom: float, n: int, level: float) -> Estimate:
    error = math.sqrt(squared_error)
    half = error * quantile((1 + level) / 2, freedom)
    p = 2 * float(student().stdtr(freedom, -abs(mean) / error))
    return Estimate(mean, mean - half, mean + half, p, n)


def holm(ps: Mapping[K, float]) -> dict[K, float]:
    """Return p values corrected for their number by Holm's step-down method (Holm 1979).

    NaN stays NaN, and does not count.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    given = {k: p for k, p in ps.items() if not math.isnan(p)}
    corrected, largest = dict(ps), 0.0
    for rank, (key, p) in enumerate(sorted(given.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, p * (len(given) - rank)))
        corrected[key] = largest
    return corrected
