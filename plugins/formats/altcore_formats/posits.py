"""Posits: ``positN_E`` has N bits, at most E of them for the exponent.

posit8_2 and posit16_2 are those of the Posit Standard (2022), which fixes two exponent bits;
posit8_0 and posit16_1 are those of earlier drafts. A code is a two's complement integer, ordered
like its value; the most negative one is NaR, which stands for NaN here.

Rounding to nearest is the standard's: the number is written as a posit of unlimited length, and
that is cut to N bits, ties to the even code. So what lies between two neighbours changes sides at
the posit with one more bit (near 1 that is the midpoint, farther out the geometric mean), a
number that is not zero never becomes zero, and what is beyond the largest posit becomes that. As
in every format, such numbers are counted as overflows from where the next posit of a longer word
would be nearer, and the overflow rule may be another. The other roundings take the values for
what they are: a tiny number rounded towards zero, or at random, can become zero.
"""

from __future__ import annotations

import math
import re
from functools import cache

from altcore.plugin import BadInput, TableFormat, code_format

_NAME = re.compile(r"posit([1-9][0-9]*)_(0|[1-9][0-9]*)")
_MAX_BITS = 16


@cache
def posit(name: str) -> TableFormat | None:
    """Return the posit format of that name, or None for any other name.

    Raises `BadInput` for one that is not 3 to 16 bits wide, or with values beyond float64's.

    >>> posit("posit8_2").max, posit("posit8_2").smallest
    (16777216.0, 5.960464477539063e-08)
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    bits, exponent_bits = int(match[1]), int(match[2])
    if not 3 <= bits <= _MAX_BITS:
        raise BadInput(
            f"format {name} would have a width of {bits}: a posit has 3 to {_MAX_BITS} bits"
        )
    if exponent_bits > 9 or (bits - 1) << exponent_bits > 1022:
        raise BadInput(f"format {name}: its exponents lie beyond float64's")
    last = (1 << (bits - 1)) - 1
    values = [_value(code, bits, exponent_bits) for code in range(1, last + 1)]
    # A bit more: the posits between two neighbours, and, past the last, where the grid goes on.
    cuts = [_value(2 * code + 1, bits + 1, exponent_bits) for code in range(1, last + 1)]
    end, limit = cuts[-1], _value(4 * last + 1, bits + 2, exponent_bits)
    upper = [0.0, *cuts[:-1], limit]
    return code_format(
        name,
        [0.0, *values, math.nan, *(-v for v in reversed(values))],
        boundaries=[*(-b for b in reversed(upper)), *upper],
        beyond=(-end, end),
    )


def _value(code: int, bits: int, exponent_bits: int) -> float:
    """The value of a positive code, exact: regime, exponent and fraction after a sign of 0."""
    text = f"{code:0{bits}b}"[1:]
    run = len(text) - len(text.lstrip(text[0]))
    regime = run - 1 if text[0] == "1" else -run
    rest = text[run + 1 :]
    exponent = int(rest[:exponent_bits].ljust(exponent_bits, "0") or "0", 2)
    fraction = rest[exponent_bits:]
    power = (regime << exponent_bits) + exponent - len(fraction)
    return math.ldexp(int("1" + fraction, 2), power)
