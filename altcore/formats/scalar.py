"""Number formats as data: a finite map from codes to values, with its rules. No torch here.

A format is either a set of floating-point parameters (`float_format`), or a table: ascending
values (`table_format`), or the value of every code with rounding rules of its own
(`code_format`). Everything else, its grid, ULP, stiffness, rounding and kernels, is derived.
The facts about the named formats are those of the OCP 8-bit floating point and microscaling
specifications and of IEEE 754; `altcore.formats.reference` rounds one number at a time by
definition.
"""

from __future__ import annotations

import itertools
import math
from array import array
from bisect import bisect_left
from collections.abc import Iterable
from fractions import Fraction
from functools import cached_property
from typing import Literal

from attrs import field, frozen

from altcore.errors import BadInput
from altcore.python_values import as_python

Specials = Literal["none", "ieee", "fn", "fnuz", "p3109"]
Ties = Literal["even", "up", "down"]
Overflow = Literal["saturate", "inf", "nan", "raise"]

MAX_BITS = 19  # TF32, the widest format whose codes are still worth listing


@frozen(slots=False)
class Format:
    """A named, finite map from codes to values.

    Formats are made by `float_format`, `table_format` and `code_format`. Two formats are equal
    when their names and data are; `values` compares what they can represent.
    """

    name: str

    @property
    def bits(self) -> int:
        """Width of a code in bits."""
        raise TypeError("make formats with float_format, table_format or code_format")

    @property
    def precision(self) -> int | None:
        """Significant bits, the hidden one included; None for a table."""
        return None

    @cached_property
    def code_values(self) -> tuple[float, ...]:
        """The value of every code, in code order; NaN and infinities included."""
        raise TypeError("make formats with float_format, table_format or code_format")

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

    @property
    def ties(self) -> Ties:
        """Where rounding to nearest takes a tie: to the `even` value, up (away from 0) or down."""
        return "even"

    @cached_property
    def boundaries(self) -> tuple[Fraction, ...]:
        """The point between each pair of neighbouring `values` where rounding changes."""
        v = [Fraction(x) for x in self.values]
        return tuple((a + b) / 2 for a, b in itertools.pairwise(v))

    @cached_property
    def limits(self) -> tuple[Fraction, Fraction]:
        """The points where rounding to nearest passes the smallest and the largest value."""
        low, high = self.beyond
        return (low + Fraction(self.values[0])) / 2, (Fraction(self.values[-1]) + high) / 2

    @cached_property
    def beyond(self) -> tuple[Fraction, Fraction]:
        """Where the grid would go on: the value before the smallest and after the largest.

        Overflow means that rounding passed the largest value, as if the grid went on to these.
        A table goes on by its last interval.
        """
        v = [Fraction(x) for x in (*self.values[:2], *self.values[-2:])]
        return 2 * v[0] - v[1], 2 * v[3] - v[2]

    @property  # no cached one: torch.compile cannot trace its lock
    def max(self) -> float:
        """The largest magnitude that no sign passes: 127 where the values are -128 to 127.

        So a tensor that is scaled by its largest magnitude has no overflow, whatever its sign.
        """
        low, high = self.values[0], self.values[-1]
        return min(-low, high) if low < 0 else high

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
        if self.specials not in ("none", "ieee", "fn", "fnuz", "p3109"):
            raise BadInput(f"format {self.name}: specials is none, ieee, fn, fnuz or p3109")
        if self.specials in ("ieee", "fn", "p3109") and self.exponent_bits == 0:
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
        positive = [self._special_or_value(m) for m in range(count)]
        negative = [-v for v in positive]
        if self.specials in ("fnuz", "p3109"):
            negative[0] = math.nan
        return (*positive, *negative)

    def _special_or_value(self, magnitude: int) -> float:
        if magnitude <= self.top_magnitude:
            return math.ldexp(*self._significand_and_power(magnitude))
        infinite = self.specials in ("ieee", "p3109") and magnitude == self.top_magnitude + 1
        return math.inf if infinite else math.nan

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


@frozen
class TableRules:
    """How a table rounds, where it is not by the midpoints of its values; see `code_format`."""

    ties: Ties = "even"
    boundaries: tuple[Fraction, ...] | None = None
    beyond: tuple[Fraction, Fraction] | None = None


def _bit_pattern(table: tuple[float, ...]) -> bytes:
    """What makes two tables the same: NaN equals NaN, and -0 is not 0."""
    return array("d", table).tobytes()


@frozen(slots=False, cache_hash=True)
class TableFormat(Format):
    """A format given as the value of each code."""

    table: tuple[float, ...] = field(eq=_bit_pattern)
    rules: TableRules = field(default=TableRules(), hash=False)

    def __attrs_post_init__(self) -> None:
        count, name = len(self.values), self.name
        if count < 2:
            raise BadInput(f"format {name} has {count} value(s): a format needs at least two")
        if len(self.table) > 1 << MAX_BITS:
            raise BadInput(f"format {name} has {len(self.table)} codes: {1 << MAX_BITS} at most")
        if self.values[-1] <= 0:
            raise BadInput(f"format {name} has no positive value")
        if len({v for v in self.table if math.isinf(v)}) == 1:
            raise BadInput(f"format {name} has one infinity: both are needed, or none")
        if self.ties not in ("even", "up", "down"):
            raise BadInput(f"format {name}: ties is even, up or down, not {self.ties!r}")
        low, high = self.beyond
        if not (low < self.values[0] and self.values[-1] < high):
            raise BadInput(f"format {name} does not go on beyond its values to {low} and {high}")
        self._check_boundaries()

    def _check_boundaries(self) -> None:
        given, count = self.rules.boundaries, len(self.values)
        if given is None:
            return
        if len(given) != count + 1:
            raise BadInput(
                f"format {self.name} has {len(given)} boundaries: {count} values need {count + 1}, "
                "one in each gap, and one beyond each end"
            )
        grid = [self.beyond[0], *(Fraction(v) for v in self.values), self.beyond[1]]
        for i, ((low, high), point) in enumerate(zip(itertools.pairwise(grid), given, strict=True)):
            if not low <= point <= high:
                raise BadInput(
                    f"format {self.name}: boundary {i} lies outside its gap, which is that below "
                    f"value {i} (in ascending order)"
                )

    @property
    def bits(self) -> int:
        return (len(self.table) - 1).bit_length()

    @cached_property
    def code_values(self) -> tuple[float, ...]:
        return self.table

    @property
    def ties(self) -> Ties:
        return self.rules.ties

    @cached_property
    def boundaries(self) -> tuple[Fraction, ...]:
        given = self.rules.boundaries
        return super().boundaries if given is None else given[1:-1]

    @cached_property
    def limits(self) -> tuple[Fraction, Fraction]:
        given = self.rules.boundaries
        return super().limits if given is None else (given[0], given[-1])

    @cached_property
    def beyond(self) -> tuple[Fraction, Fraction]:
        given = self.rules.beyond
        return super().beyond if given is None else given


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
    exponent_bits, mantissa_bits, bias = map(as_python, (exponent_bits, mantissa_bits, bias))
    if not (isinstance(exponent_bits, int) and isinstance(mantissa_bits, int)):
        raise BadInput(
            f"format {name}: exponent and mantissa bits are whole numbers, not "
            f"{exponent_bits!r} and {mantissa_bits!r}"
        )
    if not isinstance(bias, int | None):
        raise BadInput(f"format {name}: the bias is a whole number, not {bias!r}")
    if bias is None:
        bias = 2 ** (exponent_bits - 1) - 1 if exponent_bits > 0 else 1
    return FloatFormat(name, exponent_bits, mantissa_bits, bias, specials, subnormals)


def _numbers(name: str, values: Iterable[float]) -> tuple[float, ...]:
    try:
        return tuple(float(v) for v in values)
    except (TypeError, ValueError) as error:
        raise BadInput(f"format {name}: its values are a list of numbers ({error})") from error


def table_format(name: str, values: Iterable[float]) -> TableFormat:
    """Make a format of any finite values, ascending; a value's code is its position.

    Raises `BadInput` for fewer than two values, values out of order, NaN or infinity.

    >>> table_format("ternary", [-1, 0, 1]).bits
    2
    """
    table = _numbers(name, values)
    for i, v in enumerate(table):
        if not math.isfinite(v):
            raise BadInput(f"format {name}: value {i} is {v}; a table holds finite values only")
        if i and v <= table[i - 1]:
            raise BadInput(
                f"format {name}: value {i} ({v}) does not come after {table[i - 1]}; "
                "give the values in ascending order, each once"
            )
    return TableFormat(name, table)


def code_format(
    name: str,
    values: Iterable[float],
    *,
    ties: Ties = "even",
    boundaries: Iterable[Fraction | float] | None = None,
    beyond: tuple[Fraction | float, Fraction | float] | None = None,
) -> TableFormat:
    """Make a format of the value of every code, in code order: NaN and infinities too.

    ``ties`` says which neighbour rounding to nearest takes when both are equally near: ``even``
    (counted from the value nearest zero), ``up`` (away from zero) or ``down``. ``beyond`` is
    where the grid would go on, below the smallest and above the largest value (default: by the
    last interval). ``boundaries`` says where rounding to nearest changes: one point in each gap
    between the ordered values, and one in the gap to each end of ``beyond`` (default: the
    midpoints). Raises `BadInput` for what cannot be.

    >>> scale = code_format("scale", [0.5, 1.0, 2.0, float("nan")], beyond=(0, 4))
    >>> scale.bits, scale.max, scale.nan_codes
    (2, 2.0, (3,))
    """
    table = tuple(math.nan if math.isnan(v) else v for v in _numbers(name, values))
    points = None if boundaries is None else tuple(Fraction(b) for b in boundaries)
    ends = None if beyond is None else (Fraction(beyond[0]), Fraction(beyond[1]))
    return TableFormat(name, table, TableRules(ties, points, ends))


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
