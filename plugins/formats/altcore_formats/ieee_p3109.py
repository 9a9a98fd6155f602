"""The formats of the IEEE P3109 interim report, by the report's names: ``binary8p3se``.

``binary`` K ``p`` P, then ``s`` (signed) or ``u`` (unsigned), then ``e`` (extended: with
infinities) or ``f`` (finite). K, the width in bits, is 3 to 16; P, the precision in bits, is 1 to
K - 1, and for unsigned formats also K. Every format has subnormals, one zero and one NaN.

=========  ====================  ==================
code of    signed                unsigned
=========  ====================  ==================
NaN        2**(K-1)              2**K - 1
infinity   2**(K-1) - 1          2**K - 2
-infinity  2**K - 1              none
bias       2**(K-P-1)            2**(K-P)
=========  ====================  ==================

Values are held in float64, which has no room for the exponents of 50 of the 504 formats: those
with a bias above 1024 are refused. Ties go to the even code. Negative numbers lie below an unsigned
format and follow the overflow rule: they saturate to 0, and -infinity is encoded as NaN.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from functools import cache

from altcore.plugin import BadInput, Format, code_format, float_format

_NAME = re.compile(r"binary([1-9][0-9]*)p(0|[1-9][0-9]*)(\w*)")
_KINDS = {
    "se": "signed, extended",
    "sf": "signed, finite",
    "ue": "unsigned, extended",
    "uf": "unsigned, finite",
}
_LARGEST_BIAS = 1024  # of float64's exponents
_FLOAT_BIAS = 1023  # below it the smallest normal value is one of float64's, too


@cache
def p3109(name: str) -> Format | None:
    """Return the P3109 format of that name, or None for a name of another kind.

    Raises `BadInput` for a width, precision or ending that the report does not have, and for
    values beyond float64's.

    >>> p3109("binary8p4se").max, p3109("binary8p4uf").max, p3109("binary6p3sf").max
    (224.0, 57344.0, 14.0)
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    width, precision, kind = int(match[1]), int(match[2]), match[3]
    if kind not in _KINDS:
        known = ", ".join(f"{ending} ({meaning})" for ending, meaning in _KINDS.items())
        near = next((ending for ending in _KINDS if ending[0] == kind[:1]), "se")
        meant = _closest(width, precision, near)
        raise BadInput(f"format {name}: a P3109 name ends in one of {known}", meant=meant)
    meant = _closest(width, precision, kind)
    if not 3 <= width <= 16:
        raise BadInput(f"format {name}: a P3109 format has 3 to 16 bits, not {width}", meant=meant)
    signed, extended = kind[0] == "s", kind[1] == "e"
    largest = width - signed
    if not 1 <= precision <= largest:
        sign = "signed" if signed else "unsigned"
        raise BadInput(
            f"format {name}: the precision of {sign} formats of {width} bits is 1 to {largest}",
            meant=meant,
        )
    bias = 1 << (width - precision - signed)
    if bias > _LARGEST_BIAS:
        raise BadInput(
            f"format {name}: its values, 2**{1 - bias} to 2**{bias - 1}, lie beyond float64's",
            meant=meant,
        )
    if signed and bias <= _FLOAT_BIAS:
        exponent, mantissa = width - precision, precision - 1
        specials = "p3109" if extended else "fnuz"
        return float_format(name, exponent, mantissa, bias=bias, specials=specials)
    return _table(name, width, precision, bias, signed=signed, extended=extended)


def _closest(width: int, precision: int, kind: str) -> str:
    """The name of the same kind whose width, and then precision, is closest."""
    width = min(max(width, 3), 16)
    largest = width - (kind[0] == "s")
    smallest = max(1, largest + 1 - _LARGEST_BIAS.bit_length())
    return f"binary{width}p{min(max(precision, smallest), largest)}{kind}"


def _table(
    name: str, width: int, precision: int, bias: int, *, signed: bool, extended: bool
) -> Format:
    """A format by the value of every code: unsigned, or with float64's subnormal numbers."""
    half = 1 << (width - signed)  # codes without a sign
    count = half - extended - (not signed)  # finite ones
    finite = [_value(code, precision, bias) for code in range(count)]
    values = [float(v) for v in finite] + [math.inf] * extended
    following = _value(count, precision, bias)
    if not signed:
        lowest = -finite[1]
        return code_format(name, [*values, math.nan], beyond=(lowest, following))
    negative = [math.nan, *(-v for v in values[1:])]
    return code_format(name, [*values, *negative], beyond=(-following, following))


def _value(code: int, precision: int, bias: int) -> Fraction:
    """The value of a code without a sign, as if every code were finite."""
    exponent, significand = divmod(code, 1 << (precision - 1))
    if exponent > 0:
        significand += 1 << (precision - 1)
    return significand * Fraction(2) ** (max(exponent, 1) - bias - (precision - 1))
