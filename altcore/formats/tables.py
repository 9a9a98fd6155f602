"""Formats that are given as a table: ascending values, or the value of every code.

A table rounds by the midpoints of its values unless it has rules of its own.
"""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import cached_property
from typing import Any

from attrs import field, frozen

from altcore.errors import BadInput, shown
from altcore.formats.base import MAX_BITS, Format, Ties

LONGEST_FRACTION = 4096
"""Bits of a numerator or denominator, far more than float64's values need: Python writes none of
more than 4,300 decimal digits.
"""


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
        infinities = {v for v in self.table if math.isinf(v)}
        if len(infinities) == 1 and (self.signed or -math.inf in infinities):
            raise BadInput(
                f"format {name} has one infinity: both are needed, or none; "
                "only a format without negative values has that above zero alone"
            )
        if self.ties not in ("even", "up", "down"):
            raise BadInput(f"format {name}: ties is even, up or down, not {shown(self.ties)}")
        for point in (*(self.rules.boundaries or ()), *(self.rules.beyond or ())):
            if max(map(int.bit_length, point.as_integer_ratio())) > LONGEST_FRACTION:
                raise BadInput(
                    f"format {name}: a fraction of its boundaries or beyond has more than "
                    f"{LONGEST_FRACTION} bits above or below its line"
                )
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

    def to_plain(self) -> dict[str, Any]:
        if type(self) is not TableFormat:
            return super().to_plain()
        key = "values" if is_ascending(self.table) else "codes"
        plain: dict[str, Any] = {"name": self.name, key: [_as_written(v) for v in self.table]}
        if self.ties != "even":
            plain["ties"] = self.ties
        for rule in ("boundaries", "beyond"):
            points = getattr(self.rules, rule)
            if points is not None:
                plain[rule] = [_exactly(p) for p in points]
        return plain

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


def _numbers(name: str, values: Iterable[float]) -> tuple[float, ...]:
    try:
        return tuple(float(v) for v in values)
    except (TypeError, ValueError) as error:
        raise BadInput(f"format {name}: its values are a list of numbers ({error})") from error


def is_ascending(table: Sequence[float]) -> bool:
    """Return whether the values are finite and ascend: then each one's code is its position."""
    return all(map(math.isfinite, table)) and all(a < b for a, b in itertools.pairwise(table))


def _as_written(value: float) -> float | str:
    """JSON has no NaN and no infinities: they are the words nan, inf and -inf."""
    return value if math.isfinite(value) else str(value)


def _exactly(point: Fraction) -> float | str:
    """A point as a float if there is that one, else as a fraction in words."""
    try:
        near = float(point)
    except OverflowError:
        return str(point)
    return near if near == point else str(point)


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
