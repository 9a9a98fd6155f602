"""A share and two correlations, each with a confidence interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

from attrs import evolve, frozen

LEVEL = 0.95
"""How sure an interval is."""
FEWEST = 4
"""Pairs from which a correlation has an interval: its error is 1 / sqrt(n - 3)."""


@frozen
class Estimate:
    """A value with its interval; NaN where it cannot be told."""

    value: float
    low: float
    high: float
    n: int


def share(hits: int, n: int) -> Estimate:
    """Return a share of independent trials, with the exact interval (Clopper and Pearson, 1934).

    >>> found = share(9, 10)
    >>> round(found.low, 4), round(found.high, 4)
    (0.555, 0.9975)
    """
    if not n:
        return Estimate(math.nan, math.nan, math.nan, 0)
    from scipy.special import betaincinv

    tail = (1 - LEVEL) / 2
    low = float(betaincinv(hits, n - hits + 1, tail)) if hits else 0.0
    high = float(betaincinv(hits + 1, n - hits, 1 - tail)) if hits < n else 1.0
    return Estimate(hits / n, low, high, n)


def pearson(x: Sequence[float], y: Sequence[float]) -> Estimate:
    """Return the linear correlation of pairs, with the interval by Fisher's transform (1921).

    Pairs on a line have the interval of a point: of normal pairs, only those that depend on each
    other entirely lie on one.

    >>> found = pearson([1, 2, 3, 4, 5], [1, 2, 3, 5, 4])
    >>> round(found.value, 3), round(found.low, 3), round(found.high, 3)
    (0.9, 0.086, 0.993)
    """
    r = _correlation(x, y)
    return _with_interval(r, len(x), 1.0)


def spearman(x: Sequence[float], y: Sequence[float]) -> Estimate:
    """Return the correlation of ranks; ties share the mean of theirs.

    The error of Fisher's transform is sqrt((1 + r²/2) / (n - 3)) (Bonett and Wright, 2000). Ranks
    that agree entirely do so by chance, too: then the interval is that of the next order, in which
    two neighbours have changed places, up to 1.
    """
    n, a, b = len(x), _ranks(x), _ranks(y)
    r = _correlation(a, b)
    reverse = [n + 1 - rank for rank in b]
    if math.isnan(r) or n < FEWEST or a not in (b, reverse):
        return _with_interval(r, n, math.sqrt(1 + r * r / 2))
    sign = 1.0 if a == b else -1.0
    next_ = sign * (1 - 12 / (n * (n * n - 1)))
    found = _with_interval(next_, n, math.sqrt(1 + next_ * next_ / 2))
    return evolve(found, value=sign, **{"high" if a == b else "low": sign})


def _correlation(x: Sequence[float], y: Sequence[float]) -> float:
    n = len(x)
    if n < 2:
        return math.nan
    a, b = ([v - math.fsum(own) / n for v in own] for own in (x, y))
    spread = math.sqrt(math.fsum(v * v for v in a)) * math.sqrt(math.fsum(v * v for v in b))
    if not spread:
        return math.nan
    products = math.fsum(v * w for v, w in zip(a, b, strict=True))
    return min(1.0, max(-1.0, products / spread))


def _ranks(values: Sequence[float]) -> list[float]:
    """Return the rank of each value, from 1.

    >>> _ranks([10.0, 30.0, 10.0])
    [1.5, 3.0, 1.5]
    """
    places: dict[float, list[int]] = {}
    for place, value in enumerate(sorted(values), 1):
        places.setdefault(value, []).append(place)
    return [math.fsum(places[value]) / len(places[value]) for value in values]


def _with_interval(r: float, n: int, factor: float) -> Estimate:
    if math.isnan(r) or n < FEWEST:
        return Estimate(r, math.nan, math.nan, n)
    if abs(r) == 1:
        return Estimate(r, r, r, n)
    half = NormalDist().inv_cdf((1 + LEVEL) / 2) * factor / math.sqrt(n - 3)
    middle = math.atanh(r)
    return Estimate(r, math.tanh(middle - half), math.tanh(middle + half), n)
