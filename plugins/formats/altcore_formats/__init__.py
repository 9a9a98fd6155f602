"""altcore's first-party formats: any ExMy by its bare name, FP16 and BF16.

A bare ExMy means sign and magnitude with bias 2**(x-1) - 1, subnormals, every code finite and
no NaN code; E0My is plain fixed point, ±m / 2**y. The names that a standard defines mean the
standard: E4M3 and E5M2 (Open Compute Project, OCP 8-bit Floating Point Specification 1.0) and
E2M1, E2M3, E3M2 (OCP Microscaling Formats 1.0, where the two readings are one). FP16 and BF16
have the infinities and NaN of IEEE 754.

E1M6 is a uniform grid too, four times E0M7's: with subnormals, one exponent bit adds no binade
of its own.
"""

from __future__ import annotations

import re

from altcore.errors import BadInput
from altcore.formats import Format, float_format

__all__ = [
    "BF16",
    "E0M7",
    "E1M6",
    "E2M5",
    "E3M4",
    "E4M3",
    "E5M2",
    "E6M1",
    "E7M0",
    "FP16",
    "exmy",
]

E0M7 = float_format("E0M7", 0, 7)
E1M6 = float_format("E1M6", 1, 6)
E2M5 = float_format("E2M5", 2, 5)
E3M4 = float_format("E3M4", 3, 4)
E4M3 = float_format("E4M3", 4, 3, specials="fn")
E5M2 = float_format("E5M2", 5, 2, specials="ieee")
E6M1 = float_format("E6M1", 6, 1)
E7M0 = float_format("E7M0", 7, 0)
FP16 = float_format("FP16", 5, 10, specials="ieee")
BF16 = float_format("BF16", 8, 7, specials="ieee")

_STANDARD: dict[str, Format] = {"E4M3": E4M3, "E5M2": E5M2}
_NAME = re.compile(r"E(0|[1-9][0-9]*)M(0|[1-9][0-9]*)")
_MAX_BITS = 16


def exmy(name: str) -> Format | None:
    """Return the format that a bare ExMy name means, or None for any other name.

    Raises `BadInput` for an ExMy that cannot be: not 2 to 16 bits wide with its sign, or with
    exponents beyond float64's.

    >>> exmy("E2M1").values[-1], exmy("E3M4").max, exmy("E4M3").max
    (6.0, 31.0, 448.0)
    >>> exmy("posit8_1") is None
    True
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    if name in _STANDARD:
        return _STANDARD[name]
    exponent_bits, mantissa_bits = (int(digits) for digits in match.groups())
    bits = 1 + exponent_bits + mantissa_bits
    if not 2 <= bits <= _MAX_BITS:
        raise BadInput(
            f"format {name} would have {bits} bits, its sign included: an ExMy has 2 to {_MAX_BITS}"
        )
    return float_format(name, exponent_bits, mantissa_bits)
