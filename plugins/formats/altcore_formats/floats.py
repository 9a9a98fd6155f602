"""Floating point: any ExMy by its bare name, the variants with names of their own, and E8M0.

A bare ExMy means sign and magnitude with bias 2**(x-1) - 1, subnormals, every code finite and
no NaN code; E0My is plain fixed point, ±m / 2**y. The names that a standard defines mean the
standard: E4M3 and E5M2 (Open Compute Project, OCP 8-bit Floating Point Specification 1.0), E2M1,
E2M3 and E3M2 (OCP Microscaling Formats 1.0, where the two readings are one), and E8M0 (the same,
a scale without a sign: 2**-127 to 2**127, no zero, NaN at 0xFF).

A suffix says which codes are special, for any ExMy of 3 to 16 bits with an exponent:

- ``ExMyIEEE``: infinities and NaN where all exponent bits are set, as in IEEE 754;
- ``ExMyFN`` (8 bits and more): finite but for one NaN, at all ones: E4M3FN is OCP's E4M3;
- ``ExMyFNUZ``: finite, NaN in the place of -0, and the bias one more, 2**(x-1).

``B`` and a number before the suffix set another bias: E4M3B11FNUZ.

FP16, BF16 and TF32 (8 exponent and 10 mantissa bits) have the infinities and NaN of IEEE 754.

E1M6 is a uniform grid too, four times E0M7's: with subnormals, one exponent bit adds no binade
of its own.
"""

from __future__ import annotations

import math
import re
from functools import cache

from altcore.plugin import BadInput, FloatFormat, Format, Specials, code_format, float_format

E0M7 = float_format("E0M7", 0, 7)
E1M6 = float_format("E1M6", 1, 6)
E2M1 = float_format("E2M1", 2, 1)
E2M3 = float_format("E2M3", 2, 3)
E2M5 = float_format("E2M5", 2, 5)
E3M2 = float_format("E3M2", 3, 2)
E3M4 = float_format("E3M4", 3, 4)
E4M3 = float_format("E4M3", 4, 3, specials="fn")
E5M2 = float_format("E5M2", 5, 2, specials="ieee")
E6M1 = float_format("E6M1", 6, 1)
E7M0 = float_format("E7M0", 7, 0)
E8M0 = code_format("E8M0", [*(2.0 ** (c - 127) for c in range(255)), math.nan], beyond=(0, 2**128))
FP16 = float_format("FP16", 5, 10, specials="ieee")
BF16 = float_format("BF16", 8, 7, specials="ieee")
TF32 = float_format("TF32", 8, 10, specials="ieee")

_STANDARD: dict[str, Format] = {"E4M3": E4M3, "E5M2": E5M2, "E8M0": E8M0}
_NUMBER = "(0|[1-9][0-9]*)"
_NAME = re.compile(f"E{_NUMBER}M{_NUMBER}")
_VARIANT = re.compile(f"E{_NUMBER}M{_NUMBER}(?:B{_NUMBER})?(IEEE|FN|FNUZ)")
_SPECIALS: dict[str, Specials] = {"IEEE": "ieee", "FN": "fn", "FNUZ": "fnuz"}
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
    _check_width(name, 1 + exponent_bits + mantissa_bits)
    return float_format(name, exponent_bits, mantissa_bits)


@cache
def exmy_variant(name: str) -> FloatFormat | None:
    """Return the IEEE, FN or FNUZ variant of that name, or None for any other name.

    Raises `BadInput` for one that cannot be, or whose name others use for something else.

    >>> exmy_variant("E4M3IEEE").max, exmy_variant("E3M4FN").max, exmy_variant("E5M2FNUZ").max
    (240.0, 30.0, 57344.0)
    """
    match = _VARIANT.fullmatch(name)
    if match is None:
        return None
    exponent_bits, mantissa_bits = int(match[1]), int(match[2])
    bits = 1 + exponent_bits + mantissa_bits
    _check_width(name, bits)
    if exponent_bits == 0:
        raise BadInput(f"format {name}: {match[4]} codes need exponent bits")
    if match[4] == "FN" and bits < 8:
        raise BadInput(
            f"format {name}: below 8 bits, other libraries use FN for formats without NaN; here "
            f"that is {name.removesuffix('FN')}"
        )
    bias = 2 ** (exponent_bits - 1) - (match[4] != "FNUZ") if match[3] is None else int(match[3])
    specials = _SPECIALS[match[4]]
    return float_format(name, exponent_bits, mantissa_bits, bias=bias, specials=specials)


def _check_width(name: str, bits: int) -> None:
    if not 2 <= bits <= _MAX_BITS:
        raise BadInput(
            f"format {name} would have a width of {bits}, its sign included: an ExMy has 2 to "
            f"{_MAX_BITS} bits"
        )


E3M4IEEE = float_format("E3M4IEEE", 3, 4, specials="ieee")
E4M3IEEE = float_format("E4M3IEEE", 4, 3, specials="ieee")
E4M3FNUZ = float_format("E4M3FNUZ", 4, 3, bias=8, specials="fnuz")
E5M2FNUZ = float_format("E5M2FNUZ", 5, 2, bias=16, specials="fnuz")
E4M3B11FNUZ = float_format("E4M3B11FNUZ", 4, 3, bias=11, specials="fnuz")
