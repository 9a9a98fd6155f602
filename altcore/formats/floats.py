"""Floating-point formats: sign, exponent and mantissa, and the rules of the edge codes.

The facts about the named formats are those of the OCP 8-bit floating point and microscaling
specifications, of IEEE 754 and of the IEEE P3109 draft.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from functools import cached_property
from typing import Any, Literal, get_args

from attrs import field, frozen

from altcore.builtin_types import as_builtin
from altcore.errors import BadInput, shown
from altcore.formats.base import MAX_BITS, Format

Specials = Literal["none", "ieee", "fn", "fnuz", "p3109"]


def _positive(fmt: Format, _: object, value: int) -> None:
    if value < 0:
        raise BadInput(f"format {fmt.name}: its widths are at least 0, not {shown(value)}")


@frozen(slots=False)
class FloatFormat(Format):
    """A floating-point format: sign, exponent and mantissa, with the rules of its edge codes."""

    exponent_bits: int = field(validator=_positive)
    mantissa_bits: int = field(validator=_positive)
    bias: int
    specials: Specials = "none"
    subnormals: bool = True

    def __attrs_post_init__(self) -> None:
        if not 2 <= self.bits <= MAX_BITS:
            raise BadInput(
                f"format {self.name} has {shown(self.bits)} bits: 2 to {MAX_BITS} are possible"
            )
        if self.specials not in get_args(Specials):
            raise BadInput(f"format {self.name}: specials is none, ieee, fn, fnuz or p3109")
        if self.specials in ("ieee", "fn", "p3109") and self.exponent_bits == 0:
            raise BadInput(f"format {self.name}: {self.specials} codes need exponent bits")
        if self.min_exponent < -1022 or self.max_exponent > 1023:
            raise BadInput(f"format {self.name}: its exponents lie beyond float64's")
        if self.exponent_bits == 0 and not self.subnormals:
            raise BadInput(f"format {self.name}: without exponent bits every value is subnormal")
        if self.max == 0:
            raise BadInput(f"format {self.name} has no value but zero")

    def to_plain(self) -> dict[str, Any]:
        if type(self) is not FloatFormat:
            return super().to_plain()
        plain: dict[str, Any] = {
            "name": self.name,
            "exponent": self.exponent_bits,
            "mantissa": self.mantissa_bits,
        }
        if self.bias != usual_bias(self.exponent_bits):
            plain["bias"] = self.bias
        if self.specials != "none":
            plain["specials"] = self.specials
        if not self.subnormals:
            plain["subnormals"] = False
        return plain

    @property
    def bits(self) -> int:
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def precision(self) -> int:
        return self.mantissa_bits + (self.exponent_bits > 0)

    @property
    def min_exponent(self) -> int:
        """The exponent of the smallest normal value, and of the subnormals' spacing."""
        return 1 - self.bias

    @property
    def max_exponent(self) -> int:
        """The exponent of the largest value's binade."""
        return max(self.top_magnitude >> self.mantissa_bits, 1) - self.bias

    @property
    def top_magnitude(self) -> int:
        """The code, without its sign, of the largest finite value."""
        top = (1 << (self.exponent_bits + self.mantissa_bits)) - 1
        if self.specials == "ieee":
            return top - (1 << self.mantissa_bits)
        return top - (self.specials in ("fn", "p3109"))

    def magnitude_value(self, magnitude: int) -> Fraction:
        """The value of a code without its sign, as if every code were finite and went on."""
        significand, power = self._significand_and_power(magnitude)
        return Fraction(significand) * Fraction(2) ** power

    def _significand_and_power(self, magnitude: int) -> tuple[int, int]:
        exponent, mantissa = divmod(magnitude, 1 << self.mantissa_bits)
        if exponent == 0 and not self.subnormals:
            mantissa = 0
        elif exponent > 0:
            mantissa += 1 << self.mantissa_bits
        return mantissa, max(exponent, 1) - self.bias - self.mantissa_bits

    @cached_property
    def code_values(self) -> tuple[float, ...]:
        count = 1 << (self.exponent_bits + self.mantissa_bits)
        positive = [*self._magnitudes]
        specials = [math.nan] * (count - len(positive))
        if self.specials in ("ieee", "p3109"):
            specials[0] = math.inf
        positive += specials
        negative = [-v for v in positive]
        if self.specials in ("fnuz", "p3109"):
            negative[0] = math.nan
        return (*positive, *negative)

    @property
    def _magnitudes(self) -> Iterator[float]:
        """The finite values without their signs, in the order of their codes."""
        for first in range(0, self.top_magnitude + 1, 1 << self.mantissa_bits):
            count = min(1 << self.mantissa_bits, self.top_magnitude + 1 - first)
            if first == 0 and not self.subnormals:
                yield from [0.0] * count
            else:
                significand, power = self._significand_and_power(first)
                unit = math.ldexp(1.0, power)  # exact, and so are its multiples
                yield from [m * unit for m in range(significand, significand + count)]

    @cached_property
    def even(self) -> tuple[bool, ...]:
        # The even code: for formats with all subnormals this is also the position from zero.
        parity = {v: c % 2 == 0 for c, v in enumerate(self.code_values) if math.isfinite(v)}
        parity[0.0] = True
        return tuple(parity[v] for v in self.values)

    @cached_property
    def beyond(self) -> tuple[Fraction, Fraction]:
        following = self.magnitude_value(self.top_magnitude + 1)
        return -following, following

    @property
    def max(self) -> float:
        return math.ldexp(*self._significand_and_power(self.top_magnitude))

    @cached_property
    def smallest(self) -> float:
        first = 1 if self.subnormals and self.mantissa_bits else 1 << self.mantissa_bits
        return float(self.magnitude_value(min(first, self.top_magnitude)))

    @property
    def signed(self) -> bool:
        return True


def usual_bias(exponent_bits: int) -> int:
    """Return the bias of IEEE 754: 0 for one exponent bit; fixed point, without any, has 1."""
    return (1 << (exponent_bits - 1)) - 1 if exponent_bits > 0 else 1


def float_format(
    name: str,
    exponent_bits: int,
    mantissa_bits: int,
    *,
    bias: int | None = None,
    specials: Specials = "none",
    subnormals: bool = True,
) -> FloatFormat:
    """Make a floating-point format with a sign bit.

    ``bias`` defaults to ``2**(exponent_bits - 1) - 1`` (0 for one exponent bit; without exponent
    bits the format is fixed point, ±m / 2**mantissa_bits). ``specials`` says what the edge codes
    mean: ``none`` (all codes finite), ``ieee`` (infinities and NaN), ``fn`` (one NaN, at all
    ones; OCP E4M3), ``fnuz`` (NaN in the place of -0), ``p3109`` (that, and infinities at all
    ones). Raises `BadInput` for what cannot be.

    >>> float_format("E3M4", 3, 4).max
    31.0
    >>> float_format("E0M7", 0, 7).max
    0.9921875
    >>> float_format("E5M2", 5, 2, specials="ieee").max
    57344.0
    """
    exponent_bits, mantissa_bits, bias = map(as_builtin, (exponent_bits, mantissa_bits, bias))
    if not (isinstance(exponent_bits, int) and isinstance(mantissa_bits, int)):
        raise BadInput(
            f"format {name}: exponent and mantissa bits are whole numbers, not "
            f"{shown(exponent_bits)} and {shown(mantissa_bits)}"
        )
    if not isinstance(bias, int | None):
        raise BadInput(f"format {name}: the bias is a whole number, not {shown(bias)}")
    if bias is None:
        bias = usual_bias(min(exponent_bits, MAX_BITS))  # wider ones are refused
    return FloatFormat(name, exponent_bits, mantissa_bits, bias, specials, subnormals)
