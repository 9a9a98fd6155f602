"""Logarithmic formats: a sign, and the base-2 logarithm of the magnitude in fixed point.

``LOGi_f-by-value`` and ``LOGi_f-by-log``: the logarithm has i integer bits, its own sign
included, and f fraction bits, in two's complement; so 1 + i + f bits, and the values
±2**(L / 2**f). The most negative L stands for zero, and with the sign set for NaN. Values that no
float32 can be (all but the powers of two) have 24 significant bits, rounded to nearest.

- ``by-value`` takes the nearest value. Ties are possible between whole powers of two, and beside
  zero; they go to the even L.
- ``by-log`` takes the nearest logarithm: the side changes at the geometric mean, which is no
  float, so there are no ties. Zero counts as what its L would mean: it is taken for what lies
  more than half a step below the smallest value.

The E7M0 kind, ``ExM0``, is one bit of precision with zero at exponent code 0. By its bare name it
is rounded by value, ties to the even code. ``ExM0-ties-up`` (away from zero: 3 becomes 4),
``ExM0-ties-down`` and ``ExM0-by-log`` (up from the square root of 2) have the same values. So for
OCP's E8M0, which is unsigned and has no zero.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from fractions import Fraction
from functools import cache

from altcore.plugin import BadInput, Format, TableFormat, Ties, code_format
from altcore_formats.floats import exmy

_LOG = re.compile(r"LOG(0|[1-9][0-9]*)_(0|[1-9][0-9]*)(-[a-z-]*)?")
_POWER = re.compile(r"(E[1-9][0-9]*M0)-(ties-up|ties-down|by-log)")
_TIES: dict[str, Ties] = {"ties-up": "up", "ties-down": "down"}
_MAX_BITS = 16
_MAX_INTEGER_BITS = 10  # exponents to 2**9: of float64's
_SIGNIFICAND = 24  # float32's
_ROOT_BITS = 320  # of the boundaries: any float is far from them in comparison


@cache
def logarithmic(name: str) -> TableFormat | None:
    """Return the logarithmic format of that name, or None for any other name.

    Raises `BadInput` for one that cannot be, or that does not say how it rounds.

    >>> lns = logarithmic("LOG4_3-by-log")
    >>> lns.bits, lns.smallest, lns.max
    (8, 0.004259795881807804, 234.75303649902344)
    """
    match = _LOG.fullmatch(name)
    if match is None:
        return None
    integer, fraction, rule = int(match[1]), int(match[2]), match[3]
    if rule not in ("-by-value", "-by-log"):
        bare = f"LOG{integer}_{fraction}"
        raise BadInput(f"format {name}: say what is nearest: {bare}-by-value or {bare}-by-log")
    bits = 1 + integer + fraction
    if not 3 <= bits <= _MAX_BITS:
        raise BadInput(
            f"format {name} would have a width of {bits}: 3 to {_MAX_BITS} bits are possible"
        )
    if not 1 <= integer <= _MAX_INTEGER_BITS:
        raise BadInput(
            f"format {name}: the logarithm has 1 to {_MAX_INTEGER_BITS} integer bits, its sign "
            f"included, not {integer}"
        )
    half = 1 << (integer + fraction - 1)
    # In half steps: the values, and one beyond, at the even ones.
    exact = _powers_of_two(range(1 - 2 * half, 2 * half + 1), fraction + 1)
    values = [_rounded(v) for v in exact[1::2]]
    end = Fraction(values.pop())
    # In code order: 0 and positive logarithms, then the negative ones.
    positive = [*values[half - 1 :], 0.0, *values[: half - 1]]
    negative = [*(-v for v in values[half - 1 :]), math.nan, *(-v for v in values[: half - 1])]
    codes = (*positive, *negative)
    boundaries = _both_sides(exact[0::2]) if rule == "-by-log" else None
    return code_format(name, codes, boundaries=boundaries, beyond=(-end, end))


@cache
def power_of_two(name: str) -> Format | None:
    """Return an ExM0 with the rounding that its name adds, or None for any other name.

    Raises `BadInput` where there is no such ExM0.

    >>> power_of_two("E7M0-by-log").values == exmy("E7M0").values
    True
    """
    match = _POWER.fullmatch(name)
    base = None if match is None else exmy(match[1])
    if match is None or base is None:
        return None
    rule = match[2]
    codes, beyond = base.code_values, base.beyond
    if rule in _TIES:
        return code_format(name, codes, ties=_TIES[rule], beyond=beyond)
    root = Fraction(math.isqrt(2 << (2 * _ROOT_BITS)), 1 << _ROOT_BITS)
    upper = [Fraction(v) * root / 2 for v in base.values if v > 0] + [beyond[1] * root / 2]
    boundaries = _both_sides(upper) if base.signed else upper
    return code_format(name, codes, boundaries=boundaries, beyond=beyond)


def _both_sides(upper: Sequence[Fraction]) -> list[Fraction]:
    return [*(-b for b in reversed(upper)), *upper]


def _powers_of_two(steps: range, fraction: int) -> list[Fraction]:
    """2**(k / 2**fraction) for consecutive k, cut to some `_ROOT_BITS` bits where irrational."""
    root = 2 << _ROOT_BITS
    for _ in range(fraction):
        root = math.isqrt(root << _ROOT_BITS)
    one = 1 << _ROOT_BITS
    count = 1 << fraction
    octave = list(
        itertools.accumulate(range(count - 1), lambda v, _: (v * root) >> _ROOT_BITS, initial=one)
    )
    return [Fraction(octave[k % count], one) * Fraction(2) ** (k // count) for k in steps]


def _rounded(value: Fraction) -> float:
    """The nearest number of `_SIGNIFICAND` significant bits."""
    exponent = math.frexp(float(value))[1] - _SIGNIFICAND
    return math.ldexp(round(value / Fraction(2) ** exponent), exponent)
