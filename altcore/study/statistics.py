"""What studies make of paired differences: shares of a gap, by mend and by factor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain, combinations
from typing import Any

from attrs import asdict

from altcore.estimates import LEVEL, Estimate, estimate, quantile


def plain(found: Estimate) -> dict[str, Any]:
    """Return an estimate as plain data."""
    return asdict(found)


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
