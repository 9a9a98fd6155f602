"""A format's values as the constants that round to them, worked out once in exact arithmetic.

A float format becomes a few integers (`FloatConstants`). Any other format, and under log-nearest
every one, becomes its sorted values (`TableConstants`) and, for each rounding, the exact
*thresholds* between them: the smallest number of the compute dtype that rounds up. A threshold
decides its tie, so that rounding is one search and no arithmetic on the way can round twice.
"""

from __future__ import annotations

import itertools
import math
import struct
from fractions import Fraction

import torch
from attrs import field, frozen

from altcore.formats import (
    AnyFormat,
    BlockFormat,
    FloatFormat,
    Format,
    is_even,
    log_boundary,
    to_single,
)
from altcore.numerics.tracing import by_identity, constant

_ROOT_BITS = 64  # of a root that is irrational: more than a float64 has


@frozen
class Layout:
    """The layout of a float dtype: its exponent and its mantissa."""

    dtype: torch.dtype
    integer: torch.dtype
    mantissa: int  # bits
    bias: int
    magnitude: int  # mask: all bits but the sign
    infinity: int  # bits of +inf; above it are the NaNs
    largest: float
    hidden: int = field(init=False)  # bit of a normal number's significand
    # No property: torch.compile cannot compute with one of a constant's part.

    @hidden.default
    def _(self) -> int:
        return 1 << self.mantissa

    @property
    def smallest(self) -> float:
        """The smallest positive number."""
        return 2.0 ** (1 - self.bias - self.mantissa)


FLOAT32 = Layout(
    torch.float32, torch.int32, 23, 127, 0x7FFFFFFF, 0x7F800000, torch.finfo(torch.float32).max
)
FLOAT64 = Layout(
    torch.float64, torch.int64, 52, 1023, 2**63 - 1, 0x7FF << 52, torch.finfo(torch.float64).max
)
LAYOUTS = {torch.float32: FLOAT32, torch.float64: FLOAT64}


@frozen
class FloatConstants:
    """A float format in integers, for one compute dtype.

    A number whose magnitude's bits are at least ``min_normal`` loses ``cut`` bits of its
    mantissa; a smaller one is a multiple of ``2**sub_quantum`` (the format's subnormals, or the
    gap around zero if it has none).
    """

    layout: Layout
    mantissa: int  # bits
    min_exponent: int
    min_normal: int  # bits of the smallest normal value
    cut: int
    sub_quantum: int
    gap_cut: int  # `cut` of numbers below `min_normal`, for stochastic rounding
    least: float  # the smallest normal value
    to_magic: int  # from an exponent's bits to those of its `magic` number; 0 for none
    top: float  # rounding to nearest even passes the largest value from here on
    flip: int  # 1 where, without mantissa bits, even exponent bits mean an odd code
    max: float


@frozen
class TableConstants:
    """A table's values in the compute dtype, with a value beyond each end, and their rules."""

    layout: Layout
    values: tuple[float, ...]  # in the compute dtype
    grid: tuple[float, ...]  # float64, one beyond each end included: len(values) + 2
    starts: tuple[float, ...]  # smallest numbers of the compute dtype not below each of `grid`


@constant
def is_wide(fmt: AnyFormat) -> bool:
    """Whether float32 cannot hold the format, which is then computed in float64.

    It cannot hold values past float32's largest, normal values below its smallest normal one, and
    tables whose values, and one beyond each end, float32 would merge or flush to zero. A block
    format is as wide as its element, and under two levels as its products of an element and a
    block's scale.
    """
    if isinstance(fmt, BlockFormat):
        scale, least = fmt.scale_format, fmt.element.smallest
        if scale is None:
            return is_wide(fmt.element)
        passes = fmt.largest > FLOAT32.largest or least * scale.smallest < FLOAT32.smallest
        return passes or is_wide(fmt.element) or is_wide(scale)
    if isinstance(fmt, FloatFormat):
        return fmt.max > FLOAT32.largest or fmt.min_exponent <= -126 - (fmt.exponent_bits > 0)
    low, high = (to_single(to_double(v)) for v in fmt.beyond)
    merged = any(a == b for a, b in itertools.pairwise([low, *fmt.singles, high]))
    flushed = 0 in fmt.singles and 0 not in fmt.values
    return merged or flushed or not all(map(math.isfinite, fmt.singles))


def compute_dtype(dtype: torch.dtype, fmt: AnyFormat) -> torch.dtype:
    """Return the dtype in which ``dtype`` is rounded to ``fmt``: float32, or float64 if needed.

    float64 is for float64 input, and for formats whose values exceed float32's range. float16 and
    bfloat16 widen exactly.
    """
    return torch.float64 if dtype == torch.float64 or is_wide(fmt) else torch.float32


@by_identity
def largest_single(fmt: Format) -> float | None:
    """Return the format's largest value as a float32; None if it is computed in float64."""
    return None if is_wide(fmt) else to_single(fmt.max)


@constant
def float_constants(fmt: FloatFormat, dtype: torch.dtype) -> FloatConstants:
    """Return the integers with which float format ``fmt`` rounds numbers of ``dtype``."""
    layout = LAYOUTS[dtype]
    # Fixed point is the same grid as one exponent bit and one mantissa bit less, E0M7 as E1M6
    # divided by 4; as that, both round alike at random, too.
    fixed = fmt.exponent_bits == 0 and fmt.min_exponent > -1022
    mantissa, exponent = fmt.mantissa_bits - fixed, fmt.min_exponent - fixed
    sub_bits = mantissa if fmt.subnormals else 0
    cut = layout.mantissa - mantissa
    middle = (Fraction(fmt.max) + fmt.beyond[1]) / 2
    return FloatConstants(
        layout=layout,
        mantissa=mantissa,
        min_exponent=exponent,
        min_normal=(exponent + layout.bias) << layout.mantissa,
        cut=cut,
        sub_quantum=exponent - sub_bits,
        gap_cut=layout.mantissa - sub_bits,
        least=2.0**exponent,
        # The largest magic number has to be finite; without mantissa bits it would round ties up,
        # and without subnormals the gap around zero is not a binade's.
        to_magic=cut << layout.mantissa
        if mantissa and fmt.subnormals and fmt.max_exponent + cut < layout.bias
        else 0,
        top=_first_from(middle, layout, above=fmt.top_magnitude % 2 == 0),
        flip=0 if mantissa else (layout.bias + exponent - 1) & 1,
        max=fmt.max,
    )


@constant
def table_constants(fmt: Format, dtype: torch.dtype) -> TableConstants:
    """Return the values by which any format rounds numbers of ``dtype``."""
    layout = LAYOUTS[dtype]
    grid = _extended(fmt, layout)
    return TableConstants(
        layout=layout,
        values=_values(fmt, layout),
        grid=tuple(to_double(v) for v in grid),
        starts=tuple(_first_from(v, layout, above=False) for v in grid),
    )


@constant
def thresholds(fmt: Format, rounding: str, dtype: torch.dtype) -> tuple[float, ...]:
    """Return the smallest numbers of ``dtype`` that round up past each interval's lower end.

    Ascending, ``len(fmt.values) + 1`` of them: from the first and the last on, rounding passes
    the smallest and the largest value. For every rounding but stochastic.
    """
    layout = LAYOUTS[dtype]
    grid = _extended(fmt, layout)
    by_log = rounding == "log-nearest"
    middles = [] if by_log else [fmt.limits[0], *fmt.boundaries, fmt.limits[1]]
    result = []
    for i, (below, above) in enumerate(itertools.pairwise(grid)):
        inner_above = abs(above) < abs(below)
        if rounding == "up":
            point, beyond = below, True
        elif rounding == "down":
            point, beyond = above, False
        elif rounding == "to-zero":
            point, beyond = (below, True) if inner_above else (above, False)
            if above == -below:
                point, beyond = Fraction(0), False
        else:
            # Of values that are rounded to float32, both may lie on one side of their boundary.
            point = _root(log_boundary(fmt, i)) if by_log else middles[i]
            point = min(max(point, below), above)
            if point in (below, above):
                beyond = point == below  # a grid value is not a tie
            else:
                if above == -below:
                    inner_above = point >= 0
                inner_wins = point == 0 or _tie_goes_in(fmt, rounding, i, inner_above)
                beyond = inner_wins != inner_above
        result.append(_first_from(point, layout, above=beyond))
    return tuple(result)


def _tie_goes_in(fmt: Format, rounding: str, above: int, inner_above: bool) -> bool:
    """Whether a tie below value number ``above`` goes to the neighbour nearer zero."""
    if rounding == "nearest-away" or fmt.ties == "up":
        return False
    if fmt.ties == "down":
        return True
    low_even, high_even = is_even(fmt, above - 1), is_even(fmt, above)
    return low_even == high_even or high_even == inner_above


def _root(square: Fraction) -> Fraction:
    """Return the signed square root.

    An irrational root is replaced by a number that compares with every float as the root does: one
    between the same two multiples of a power of two too small for any float to lie between.
    """
    top, bottom = abs(square.numerator), square.denominator
    places = max(0, _ROOT_BITS - (top.bit_length() - bottom.bit_length()) // 2)
    whole, rest = divmod(top << (2 * places), bottom)
    root = math.isqrt(whole)
    exact = rest == 0 and root * root == whole
    found = Fraction(2 * root + (not exact), 2 << places)
    return found if square >= 0 else -found


def _extended(fmt: Format, layout: Layout) -> list[Fraction]:
    """The values as the dtype has them, so that they are on the grid, and one beyond each end."""
    low, high = fmt.beyond
    return [low, *(Fraction(v) for v in _values(fmt, layout)), high]


def _values(fmt: Format, layout: Layout) -> tuple[float, ...]:
    return fmt.singles if layout is FLOAT32 else fmt.values


def to_double(value: Fraction | float) -> float:
    """Round to float64; past its range to an infinity."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _first_from(point: Fraction, layout: Layout, *, above: bool) -> float:
    """The smallest number of the layout's dtype not below ``point`` (``above``: above it)."""
    number = to_double(point)
    if layout is FLOAT32:
        number = to_single(number)
    # Rounding, even twice, came out on one of the two neighbours: the upper one is wanted.
    if number < point or (above and number == point):
        number = _step(number, layout)
    return number


def _step(number: float, layout: Layout) -> float:
    """The next number up of the layout's dtype, infinities included."""
    if layout is FLOAT64:
        return math.nextafter(number, math.inf)
    if number == math.inf:
        return number
    bits = struct.unpack("<i", struct.pack("<f", number))[0]
    ordered = (bits if bits >= 0 else -(bits & 0x7FFFFFFF)) + 1
    bits = ordered if ordered >= 0 else -ordered | -0x80000000
    return float(struct.unpack("<f", struct.pack("<i", bits))[0])
