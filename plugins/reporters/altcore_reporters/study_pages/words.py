"""Numbers and names of studies, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

NOT_AVAILABLE = "not available"
NOT_TOLD = "not distinguishable"
FACTORS = {"F": "forward precision", "B": "gradient fidelity", "U": "the update"}
CAUSES = {
    "stochastic": "rounding: stochastic rounding to the same format repairs it",
    "above": "too large: values beyond its largest",
    "below": "too small: values below its smallest",
    "finer": "too coarse: two more mantissa bits within its range",
}
LOSSES = {"train": "training loss", "val": "validation loss"}
"""The losses that a study compares, by the metric; `explain` has none."""
MOST_PLACES = 8
"""After the decimal point; numbers that need more are written with an exponent."""
LEVEL = 0.05
"""Below which a corrected p tells a difference."""


def loss_name(about: Mapping[str, Any]) -> str:
    """Return what the loss is called that a study compares."""
    return LOSSES[about.get("metric", "train")]


def value(given: Any) -> float:
    """Return a number of an answer, in which nan and inf are words; NaN for None.

    >>> value(0.5), value("-inf")
    (0.5, -inf)
    """
    return math.nan if given is None else float(given)


def number(given: float | None, places: int = 4) -> str:
    """Return a number for a table, of two significant digits at the least.

    >>> number(0.12345), number(None), number(math.inf), number(-0.0000123), number(0.00026)
    ('0.1235', 'not available', 'inf', '-1.2e-05', '0.00026')
    """
    if given is None or math.isnan(given):
        return NOT_AVAILABLE
    is_small = 0 < abs(given) < 9.5 * 10**-places
    return f"{given:.2g}" if is_small else f"{given:.{places}f}"


def alike(given: Sequence[float], places: int = 4) -> list[str]:
    """Return numbers that stand together, to the same place: none as 0 that is not.

    >>> alike([1.4e-05, -6.2e-05, 8.9e-05]), alike([0.5, -math.inf, 2e-05])
    (['0.000014', '-0.000062', '0.000089'], ['0.50000', '-inf', '0.00002'])
    >>> alike([1e-12, 0.0, 2e-12])
    ['1.0e-12', '0', '2.0e-12']
    """
    sizes = [abs(x) for x in given if math.isfinite(x) and x]
    while places <= MOST_PLACES and sizes:
        if max(sizes) >= 9.5 * 10**-places and min(sizes) >= 0.5 * 10**-places:
            break
        places += 1
    if places > MOST_PLACES:
        return [f"{x:.1e}" if x else "0" for x in given]
    return [f"{x:.{places}f}" for x in given]


def digits(given: float) -> str:
    """Return a number that was given, in the shortest form.

    >>> digits(0.05), digits(6e-08), digits(300.0)
    ('0.05', '6e-08', '300')
    """
    short = f"{given:g}"
    return short if float(short) == given else repr(given).removesuffix(".0")


def factor(given: float) -> str:
    """Return what a learning rate is multiplied by.

    >>> factor(1 / 3), factor(1.0)
    ('0.333', '1')
    """
    return f"{given:.3g}"
