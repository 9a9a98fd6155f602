"""Statistics of paired differences: intervals, corrections, shares of a gap."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from itertools import chain, combinations
from typing import Any, TypeVar

from attrs import asdict, frozen

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
        raise BadInput("studies need scipy: pip install 'altcore[study]'") from error
    return special


@cache
def quantile(level: float, freedom: int) -> float:
    """Return the quantile of Student's t with so many degrees of freedom.

    >>> round(quantile(0.975, 4), 3)
    2.776
    """
    return float(student().stdtrit(freedom, level))


@frozen
class Estimate:
    """A mean of paired differences, with its interval by Student's t."""

    mean: float
    low: float
    high: float
    p: float
    """Two-sided probability of a mean as far from 0, were it 0."""
    n: int


def plain(found: Estimate) -> dict[str, Any]:
    """Return an estimate as plain data."""
    return asdict(found)


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
    n, is_sane = len(values), all(abs(v) < LARGEST for v in values)
    mean = (math.fsum if is_sane else sum)(values) / n
    if n > 1 and not any(values):
        return Estimate(0.0, 0.0, 0.0, 1.0, n)
    if n == 1 or not is_sane or not have_spread(values):
        return Estimate(mean, -math.inf, math.inf, math.nan, n)
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
    half = spread * quantile((1 + level) / 2, n - 1)
    p = 2 * float(student().stdtr(n - 1, -abs(mean) / spread))
    return Estimate(mean, mean - half, mean + half, p, n)


def share_closed(
    gaps: Sequence[float], before: Sequence[float], level: float = LEVEL
) -> Estimate | None:
    """Return which share of the gaps ``before`` is gone: 1 minus the ratio of the two means.

    Both are by seed, in pairs. The interval is that of a ratio (Fieller 1954), and misses it with
    the probability ``level``; p counts as many times as that is in `LEVEL`. None where the interval
    would have no ends: the gap before is not told from 0, or is below it.

    >>> found = share_closed([0.5, 0.6, 0.4], [1.0, 1.3, 0.8])
    >>> round(found.low, 2), round(found.mean, 2), round(found.high, 2)
    (0.37, 0.52, 0.56)
    """
    n = len(before)
    if n < 2 or estimate(before, 1 - level).low <= 0:
        return None
    a, b = math.fsum(gaps) / n, math.fsum(before) / n
    k = quantile(1 - level / 2, n - 1) ** 2 / n / (n - 1)

    def spread(xs: Sequence[float], x: float, ys: Sequence[float], y: float) -> float:
        return k * math.fsum((u - x) * (v - y) for u, v in zip(xs, ys, strict=True))

    # The ratios r for which gaps - r * before has a mean that is not told from 0.
    square = b * b - spread(before, b, before, b)
    middle = (a * b - spread(gaps, a, before, b)) / square
    half = math.sqrt(max(0.0, middle**2 - (a * a - spread(gaps, a, gaps, a)) / square))
    p = estimate([v - u for u, v in zip(gaps, before, strict=True)]).p * LEVEL / level
    return Estimate(1 - a / b, 1 - middle - half, 1 - middle + half, min(p, 1.0), n)


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


def subsets(factors: Sequence[str]) -> list[frozenset[str]]:
    """Return every subset of the factors, the empty one first.

    >>> len(subsets("FBU"))
    8
    """
    sizes = range(len(factors) + 1)
    return [frozenset(s) for s in chain.from_iterable(combinations(factors, n) for n in sizes)]


def dividends(gaps: Mapping[frozenset[str], float]) -> dict[frozenset[str], float]:
    """Return what each set of factors adds beyond its subsets (Harsanyi's dividends).

    Dividends of one factor are main effects, the others interactions. They sum to the full gap.

    >>> gaps = {frozenset(): 0.0, frozenset("a"): 1.0, frozenset("b"): 2.0, frozenset("ab"): 4.0}
    >>> dividends(gaps)[frozenset("ab")]
    1.0
    """
    return {
        s: math.fsum((-1) ** (len(s) - len(t)) * v for t, v in gaps.items() if t <= s)
        for s in gaps
        if s
    }


def shapley(gaps: Mapping[frozenset[str], float]) -> dict[str, float]:
    """Return each factor's Shapley share of the full gap; they sum to it (Shapley 1953).

    >>> gaps = {frozenset(): 0.0, frozenset("a"): 1.0, frozenset("b"): 2.0, frozenset("ab"): 4.0}
    >>> shapley(gaps)
    {'a': 1.5, 'b': 2.5}
    """
    shares = dict.fromkeys(sorted(frozenset().union(*gaps)), 0.0)
    for members, value in dividends(gaps).items():
        for factor in members:
            shares[factor] += value / len(members)
    return shares
