"""Number formats as data: a finite map from codes to values, with its rules. No torch here.

A format is either a set of floating-point parameters (`float_format`) or a table of values
(`table_format`). Everything else, its grid, ULP, stiffness, rounding and kernels, is derived.
The facts about the named formats are those of the OCP 8-bit floating point and microscaling
specifications and of IEEE 754; `altcore.reference` rounds one number at a time by definition.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Iterable
from fractions import Fraction
from functools import cached_property
from typing import Literal

from attrs import field, frozen

from altcore.errors import BadInput

Specials = Literal["none", "ieee", "fn", "fnuz"]
Overflow = Literal["saturate", "inf", "nan", "raise"]

MAX_BITS = 19  # TF32, the widest format whose codes are still worth listing


@frozen(slots=False)
class Format:
    """A named, finite map from codes to values.

    Formats are made by `float_format` and `table_format`. Two formats are equal when their names
    and data are; `values` compares what they can represent.
    """

    name: str

    @property
    def bits(self) -> int:
        """Width of a code in bits."""
        raise TypeError("make formats with float_format or table_format")

    @property
    def precision(self) -> int | None:
        """Significant bits, the hidden one included; None for a table."""
        return None

    @cached_property
    def code_values(self) -> tuple[float, ...]:
        """The value of every code, in code order; NaN and infinities included."""
        raise TypeError("make formats with float_format or table_format")

    @cached_property
    def values(self) -> tuple[float, ...]:
        """The finite values, ascending; zero once."""
        return tuple(sorted({v + 0.0 for v in self.code_values if math.isfinite(v)}))

    @cached_property
    def even(self) -> tuple[bool, ...]:
        """For each of `values`, whether a tie goes to it.

        Position counted from the value nearest zero; where two are equally near (a symmetric
        table without zero), each side counts from its own. So rounding is an odd function
        where the table is symmetric.
        """
        v = self.values
        start = min(range(len(v)), key=lambda i: (abs(v[i]), i))
        twin = start + (start + 1 < len(v) and v[start + 1] == -v[start] != 0)
        return tuple((i - (start if i <= start else twin)) % 2 == 0 for i in range(len(v)))

    @cached_property
    def boundaries(self) -> tuple[Fraction, ...]:
        """The point between each pair of neighbouring `values` where rounding changes."""
        v = [Fraction(x) for x in self.values]
        return tuple((a + b) / 2 for a, b in itertools.pairwise(v))

    @cached_property
    def beyond(self) -> tuple[Fraction, Fraction]:
        """Where the grid would go on: the value before the smallest and after the largest.

        Overflow means that rounding passed the largest value, as if the grid went on to these.
        A table goes on by its last interval.
        """
        v = [Fraction(x) for x in (*self.values[:2], *self.values[-2:])]
        return 2 * v[0] - v[1], 2 * v[3] - v[2]

    @property
    def max(self) -> float:
        """The largest magnitude."""
        return max(abs(self.values[0]), abs(self.values[-1]))

    @cached_property
    def smallest(self) -> float:
        """The smallest positive value."""
        return min(v for v in self.values if v > 0)

    @property
    def signed(self) -> bool:
        """Whether there are negative values."""
        return self.values[0] < 0

    @cached_property
    def nan_codes(self) -> tuple[int, ...]:
        """The codes that mean NaN."""
        return tuple(c for c, v in enumerate(self.code_values) if math.isnan(v))

    @cached_property
    def inf_codes(self) -> tuple[int, ...]:
        """The codes that mean an infinity."""
        return tuple(c for c, v in enumerate(self.code_values) if math.isinf(v))

    def code_of(self, value: float) -> int:
        """Return the first code whose value is ``value`` (the sign of zero counts where it can).

        Raises `BadInput` where the format has no such value.
        """
        return _code_of(self, value)

    def index_of(self, value: float) -> int:
        """Return the position of a finite grid value in `values`; `BadInput` if off the grid."""
        i = bisect_left(self.values, value)
        if i == len(self.values) or self.values[i] != value:
            raise BadInput(f"{value!r} is not a value of format {self.name}")
        return i

    def __str__(self) -> str:
        return self.name


def _positive(instance: object, attribute: object, value: int) -> None:
    if value < 0:
        raise BadInput(f"a format's widths are at least 0, not {value}")


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
            raise BadInput(f"format {self.name} has {self.bits} bits: 2 to {MAX_BITS} are possible")
        if self.specials not in ("none", "ieee", "fn", "fnuz"):
            raise BadInput(f"format {self.name}: specials is none, ieee, fn or fnuz")
        if self.specials in ("ieee", "fn") and self.exponent_bits == 0:
            raise BadInput(f"format {self.name}: {self.specials} codes need exponent bits")
        if self.min_exponent < -1022 or self.max_exponent > 1023:
            raise BadInput(f"format {self.name}: its exponents lie beyond float64's")
        if self.exponent_bits == 0 and not self.subnormals:
            raise BadInput(f"format {self.name}: without exponent bits every value is subnormal")
        if self.top_magnitude < 1:
            raise BadInput(f"format {self.name} has no value but zero")

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
        return top - (self.specials == "fn")

    def magnitude_value(self, magnitude: int) -> Fraction:
        """The value of a code without its sign, as if every code were finite and went on."""
        exponent, mantissa = divmod(magnitude, 1 << self.mantissa_bits)
        if exponent == 0 and not self.subnormals:
            return Fraction(0)
        if exponent > 0:
            mantissa += 1 << self.mantissa_bits
        power = max(exponent, 1) - self.bias - self.mantissa_bits
        return Fraction(mantissa) * Fraction(2) ** power

    @cached_property
    def code_values(self) -> tuple[float, ...]:
        count = 1 << (self.exponent_bits + self.mantissa_bits)
        positive = [self._special_or_value(m) for m in range(count)]
        negative = [-v for v in positive]
        if self.specials == "fnuz":
            negative[0] = math.nan
        return (*positive, *negative)

    def _special_or_value(self, magnitude: int) -> float:
        if magnitude <= self.top_magnitude:
            return float(self.magnitude_value(magnitude))
        first = self.top_magnitude + 1
        return math.inf if self.specials == "ieee" and magnitude == first else math.nan

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
        return float(self.magnitude_value(self.top_magnitude))

    @cached_property
    def smallest(self) -> float:
        first = 1 if self.subnormals and self.mantissa_bits else 1 << self.mantissa_bits
        return float(self.magnitude_value(min(first, self.top_magnitude)))

    @property
    def signed(self) -> bool:
        return True


@frozen(slots=False)
class TableFormat(Format):
    """A format given as its values; a value's code is its position."""

    table: tuple[float, ...]

    def __attrs_post_init__(self) -> None:
        t, name = self.table, self.name
        if len(t) < 2:
            raise BadInput(f"format {name} has {len(t)} value(s): a format needs at least two")
        if len(t) > 1 << MAX_BITS:
            raise BadInput(f"format {name} has {len(t)} values: at most {1 << MAX_BITS} fit")
        for i, v in enumerate(t):
            if not math.isfinite(v):
                raise BadInput(f"format {name}: value {i} is {v}; a table holds finite values only")
            if i and v <= t[i - 1]:
                raise BadInput(
                    f"format {name}: value {i} ({v}) does not come after {t[i - 1]}; "
                    "give the values in ascending order, each once"
                )
        if t[-1] <= 0:
            raise BadInput(f"format {name} has no positive value")

    @property
    def bits(self) -> int:
        return (len(self.table) - 1).bit_length()

    @cached_property
    def code_values(self) -> tuple[float, ...]:
        return self.table


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
    ones; OCP E4M3), ``fnuz`` (NaN in the place of -0). Raises `BadInput` for what cannot be.

    >>> float_format("E3M4", 3, 4).max
    31.0
    >>> float_format("E0M7", 0, 7).max
    0.9921875
    >>> float_format("E5M2", 5, 2, specials="ieee").max
    57344.0
    """
    if bias is None:
        bias = 2 ** (exponent_bits - 1) - 1 if exponent_bits > 0 else 1
    return FloatFormat(name, exponent_bits, mantissa_bits, bias, specials, subnormals)


def table_format(name: str, values: Iterable[float]) -> TableFormat:
    """Make a format of any finite values, ascending; a value's code is its position.

    Raises `BadInput` for fewer than two values, values out of order, NaN or infinity.

    >>> table_format("ternary", [-1, 0, 1]).bits
    2
    """
    return TableFormat(name, tuple(float(v) for v in values))


def _code_of(fmt: Format, value: float) -> int:
    wanted = (math.isnan(value), math.copysign(1.0, value))
    fallback = None
    for code, v in enumerate(fmt.code_values):
        if v == value or (wanted[0] and math.isnan(v)):
            if wanted[0] or math.copysign(1.0, v) == wanted[1]:
                return code
            fallback = code if fallback is None else fallback
    if fallback is None:
        raise BadInput(f"{value!r} is not a value of format {fmt.name}")
    return fallback
