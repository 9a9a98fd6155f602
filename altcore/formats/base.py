"""`Format`: a finite map from codes to values, with its rules. The base of floats and tables.

Everything else about a format, its grid, ULP, stiffness, rounding and kernels, is derived from
what is here. `altcore.formats.reference` rounds one number at a time by definition.
"""

from __future__ import annotations

import itertools
import math
import struct
from bisect import bisect_left
from fractions import Fraction
from functools import cached_property
from typing import Any, Literal

from attrs import field, frozen

from altcore.errors import BadInput, shown
from altcore.registry import RESERVED

Ties = Literal["even", "up", "down"]

MAX_BITS = 19  # TF32, the widest format whose codes are still worth listing


def check_name(_: object, __: object, name: Any) -> None:
    """Refuse the name of a format, of single numbers or of blocks, that cannot be one."""
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise BadInput(f"format {shown(name)}: its name is a line of text")
    if name in RESERVED:
        raise BadInput(f"format {name}: the name is reserved")


@frozen(slots=False)
class Format:
    """A named, finite map from codes to values.

    Formats are made by `float_format`, `table_format` and `code_format`. Two formats are equal
    when their names and data are; `values` compares what they can represent.
    """

    name: str = field(validator=check_name)

    def to_plain(self) -> dict[str, Any]:
        """Return the format as data that YAML and JSON can hold; `from_plain` gives it back.

        Raises `BadInput` for a format of a class of one's own.
        """
        raise BadInput(
            f"format {self.name}: plain data cannot hold a {type(self).__name__}; make the format "
            "with float_format, table_format or code_format"
        )

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
    def singles(self) -> tuple[float, ...]:
        """`values` rounded to float32: the grid to which numbers of float32 are rounded."""
        return tuple(map(to_single, self.values))

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
        codes = [c for c, v in enumerate(self.code_values) if v == value]
        codes = list(self.nan_codes[:1]) if math.isnan(value) else codes
        if not codes:
            raise BadInput(f"{shown(value)} is not a value of format {self.name}")
        sign = math.copysign(1.0, value)
        return min(codes, key=lambda c: math.copysign(1.0, self.code_values[c]) != sign)

    def index_of(self, value: float) -> int:
        """Return the position of a finite grid value in `values`; `BadInput` if off the grid."""
        i = bisect_left(self.values, value)
        if i == len(self.values) or self.values[i] != value:
            raise BadInput(f"{shown(value)} is not a value of format {self.name}")
        return i

    def __str__(self) -> str:
        return self.name


def to_single(value: float) -> float:
    """Round to float32, by value; past its range to an infinity."""
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)
