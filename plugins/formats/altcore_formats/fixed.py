"""Integers and fixed point, in two's complement: one more value below zero than above.

``INTn``: the integers -2**(n-1) to 2**(n-1) - 1. ``Qm_n`` (Qm.n in the literature): a sign, m
integer bits and n fraction bits, so 1 + m + n bits, and the integers of that width divided by
2**n. Q1_6 is the element of OCP's MXINT8. Sign and magnitude without an exponent is E0My.
"""

from __future__ import annotations

import re
from functools import cache

from altcore.plugin import BadInput, TableFormat, code_format

_INTEGER = re.compile(r"INT(0|[1-9][0-9]*)")
_FIXED = re.compile(r"Q(0|[1-9][0-9]*)_(0|[1-9][0-9]*)")
_MAX_BITS = 16


@cache
def integer(name: str) -> TableFormat | None:
    """Return INT2 to INT16 by name, or None for any other name; `BadInput` for another width.

    >>> integer("INT8").values[0], integer("INT8").values[-1]
    (-128.0, 127.0)
    """
    match = _INTEGER.fullmatch(name)
    return None if match is None else _twos_complement(name, int(match[1]), 0)


@cache
def fixed_point(name: str) -> TableFormat | None:
    """Return the fixed-point format Qm_n, or None for any other name.

    Raises `BadInput` for one that is not 2 to 16 bits wide with its sign.

    >>> fixed_point("Q3_4").values[0], fixed_point("Q3_4").values[-1]
    (-8.0, 7.9375)
    """
    match = _FIXED.fullmatch(name)
    if match is None:
        return None
    return _twos_complement(name, 1 + int(match[1]) + int(match[2]), int(match[2]))


def _twos_complement(name: str, bits: int, fraction: int) -> TableFormat:
    if not 2 <= bits <= _MAX_BITS:
        raise BadInput(
            f"format {name} would have a width of {bits}: 2 to {_MAX_BITS} bits are possible"
        )
    half = 1 << (bits - 1)
    return code_format(name, [v / 2**fraction for v in (*range(half), *range(-half, 0))])


INT4 = _twos_complement("INT4", 4, 0)
INT8 = _twos_complement("INT8", 8, 0)
