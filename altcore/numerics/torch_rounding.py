"""Rounding to a format's grid in torch operations: exact, on every device, without transfers.

`round_float` works on the integer significand, where every rounding is a comparison of the
bits that are cut off; `round_table` searches the thresholds of
`altcore.numerics.rounding_constants`. Both return the grid value, and whether rounding passed the
largest one, which then is the grid value.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor

from altcore.formats import FloatFormat, Format, Stochastic
from altcore.numerics.rounding_constants import (
    FloatConstants,
    float_constants,
    table_constants,
    thresholds,
)
from altcore.numerics.rules import Rule, half_bit, has_few_bits
from altcore.numerics.tracing import constant_tensors

TABLE_BITS = 23
"""The most random bits that decide between two values of a table."""


def round_unscaled(
    y: Tensor, fmt: Format, rule: Rule, noise: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Round ``y`` (float32 or float64) to ``fmt``: grid values saturated, and the overflows.

    ``noise`` holds the 32 random bits of each element for stochastic rounding. NaN gives NaN.
    A zero has the sign of ``y``.
    """
    if goes_by_bits(fmt, rule):
        return round_float(y, float_constants(fmt, y.dtype), rule, noise)
    return round_table(y, fmt, rule, noise)


def goes_by_bits(fmt: Format, rule: Rule) -> TypeGuard[FloatFormat]:
    """Whether rounding needs no search among the format's values."""
    # Geometric means have no bit pattern in common: log-nearest goes by thresholds.
    return isinstance(fmt, FloatFormat) and rule.rounding != "log-nearest"


def round_float(
    y: Tensor, c: FloatConstants, rule: Rule, noise: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`round_unscaled` for a float format."""
    a = y.abs()
    if rule.rounding == "nearest-even" and c.to_magic:
        over = a >= c.top
        return torch.copysign(_round_by_adding(a, c), y), over
    if noise is not None:
        size = _draw_size(a, c, noise, rule)
    else:
        size = _round_size(a, c, rule.rounding, torch.signbit(y))
    missing = torch.isnan(y)
    over = (size > c.max) & ~missing
    value = torch.copysign(size.clamp(max=c.max), y)
    return torch.where(missing, torch.nan, value), over


def _round_by_adding(a: Tensor, c: FloatConstants) -> Tensor:
    """Magnitudes ``a`` to nearest even, saturating; NaN stays.

    The addition of a power of two does the rounding: that at which float numbers are as far
    apart as the format's values. Its bits come from the magnitude's own exponent, no less than
    the subnormals'.
    """
    layout = c.layout
    a = a.clamp(max=c.max)
    exponent = (a.view(layout.integer) & layout.infinity).clamp(min=c.min_normal)
    magic = exponent.add_(c.to_magic).view(layout.dtype)
    return a.add_(magic).sub_(magic)


def _round_size(a: Tensor, c: FloatConstants, rounding: str, negative: Tensor) -> Tensor:
    """Magnitudes ``a`` rounded as if the format had no largest value; anything for NaN."""
    layout = c.layout
    magnitude = a.contiguous().view(layout.integer)
    exponent = (magnitude >> layout.mantissa).clamp(min=1)
    fraction = magnitude & (layout.hidden - 1)
    significand = torch.where(magnitude < layout.hidden, fraction, fraction | layout.hidden)
    # The number is significand * 2**(exponent - bias - mantissa); `cut` bits of it are lost.
    low = magnitude < c.min_normal
    cut = (c.sub_quantum + layout.bias + layout.mantissa) - exponent
    cut = torch.where(low, cut, c.cut).clamp(max=layout.mantissa + 3)  # the rest: below half
    whole = significand >> cut
    rest = significand - (whole << cut)
    if rounding in ("nearest-even", "nearest-away"):
        half = torch.ones_like(cut) << (cut - 1)
        tie = rest == half
        if rounding == "nearest-even":
            code = torch.where(low, whole, (magnitude >> c.cut) ^ c.flip)
            tie = tie & (code & 1 == 1)
        away = (rest > half) | tie
    elif rounding == "to-zero":
        away = torch.zeros_like(low)
    else:
        away = (rest != 0) & (negative if rounding == "down" else ~negative)
    up = away.to(layout.integer)
    small = (whole + up).to(layout.dtype) * 2.0**c.sub_quantum
    large = (magnitude - rest + (up << c.cut)).view(layout.dtype)
    return torch.where(low, small, large)


def _draw_size(a: Tensor, c: FloatConstants, noise: Tensor, rule: Rule) -> Tensor:
    """Magnitudes ``a`` rounded at random, like `_round_size`.

    As many random bits as are cut off are added below the cut, so that the probability of a
    carry is the fraction itself (float64: to within 2**-33). Below the normal range the addition
    of the smallest normal value first brings the cut to its place, which rounds the fraction to
    that many bits. A few random bits ask for its exact first ones: there it is cut off.
    """
    low = a < c.least
    lift = low.to(a.dtype) * c.least
    lifted = a + lift
    bits = lifted.view(c.layout.integer)
    if has_few_bits(rule):
        bits = bits - (lifted - lift > a).to(bits.dtype)
    drawn = _carry(bits, noise, c.cut, rule.stochastic)
    if c.gap_cut != c.cut:
        drawn = torch.where(low, _carry(bits, noise, c.gap_cut, rule.stochastic), drawn)
    size = drawn.view(a.dtype) - lift
    return torch.where(torch.isinf(a), a, size)


def _carry(bits: Tensor, noise: Tensor, cut: int, settings: Stochastic) -> Tensor:
    """Add the top random bits to the lowest ``cut`` ones, then clear those."""
    count = settings.random_bits
    if cut <= count:
        more = (noise >> (32 - cut)) & ((1 << cut) - 1)
    else:
        drawn = _first_bits(noise, count).to(bits.dtype)
        more = (drawn << (cut - count)) + int(half_bit(settings) * 2 ** (cut - count))
    return (bits + more) & -(1 << cut)


def _first_bits(noise: Tensor, count: int) -> Tensor:
    """Return the first ``count`` of the 32 random bits as a whole number, int64.

    By no mask that depends on the count: some versions of torch.compile take that for a symbol,
    and compute powers of two of a symbol in float64.
    """
    return (noise.to(torch.int64) & 0xFFFFFFFF) >> (32 - count)


def round_table(y: Tensor, fmt: Format, rule: Rule, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    """`round_unscaled` for a format given by its values."""
    points, values, grid = _tensors(fmt, rule.rounding, y.dtype, y.device)
    last = len(values) - 1
    index = torch.bucketize(y.contiguous(), points, right=True)
    if noise is not None:
        below = index - 1
        interval = below.clamp(0, last + 1)
        low, high = grid[interval], grid[interval + 1]
        inner_above = torch.where(high == -low, y >= 0, high.abs() < low.abs())
        inner, outer = torch.where(inner_above, high, low), torch.where(inner_above, low, high)
        distance, width = (y.double() - inner).abs(), (outer - inner).abs()
        # Compared with as many random bits, turned so that large ones round away.
        count = min(rule.stochastic.random_bits, TABLE_BITS)
        drawn = _first_bits(~noise, count).double()
        outside = distance * 2.0**count >= (drawn + 1 - half_bit(rule.stochastic)) * width
        # Position in the extended grid: the upper end if exactly one of the two holds.
        index = interval + (inner_above ^ outside).to(torch.int64)
        index = torch.where(below < 0, 0, torch.where(below > last + 1, last + 2, index))
    value = values[(index - 1).clamp(0, last)]
    value = torch.where(value == 0, torch.copysign(torch.zeros_like(y), y), value)
    missing = torch.isnan(y)
    over = ((index == 0) | (index == last + 2)) & ~missing
    return torch.where(missing, torch.nan, value), over


@constant_tensors
def _tensors(
    fmt: Format, rounding: str, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """The table's thresholds (for stochastic rounding, its values), values and extended grid."""
    c = table_constants(fmt, dtype)
    points = c.starts if rounding == "stochastic" else thresholds(fmt, rounding, dtype)
    return (
        torch.tensor(points, dtype=dtype, device=device),
        torch.tensor(c.values, dtype=dtype, device=device),
        torch.tensor(c.grid, dtype=torch.float64, device=device),
    )
