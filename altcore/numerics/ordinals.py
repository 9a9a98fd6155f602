"""Where numbers stand on a format's grid: ordinals, interval widths, rounding errors."""

from __future__ import annotations

import torch
from torch import Tensor

from altcore.formats import FloatFormat, Format
from altcore.numerics import kernels
from altcore.numerics.checks import check_floating
from altcore.numerics.rounding import fake_round
from altcore.numerics.rounding_constants import (
    LAYOUTS,
    FloatConstants,
    compute_dtype,
    float_constants,
    table_constants,
)
from altcore.numerics.tracing import constant_tensors, untraced

LARGEST_TABLE = 1 << 18
"""Entries of a table of ordinals; a format that needs more of them is searched."""


def ordinal(q: Tensor, fmt: Format) -> Tensor:
    """Return the ordinal of each grid value: its index in ``fmt.values``, int64, of ``q``'s shape.

    ``q`` holds grid values, as `round_to_grid` returns them. -0 counts as 0. NaN and infinities
    have no ordinal: -1.
    """
    check_floating(q)
    q = q.detach().resolve_neg().to(compute_dtype(q.dtype, fmt)).contiguous()
    if isinstance(fmt, FloatFormat):
        c = float_constants(fmt, q.dtype)
        if not _doubles(c):
            return _ordinal_by_parts(q, fmt, c)
        by_kernels = q.dtype is torch.float32 and kernels.reads(q)
        return kernels.ordinal(q, fmt, c) if by_kernels else _ordinal_by_bits(q, fmt, c)
    if (found := _leading_bits(fmt, q.dtype, q.device)) is None:
        return _ordinal_by_search(q, fmt)
    cut, table = found
    index = (q.view(LAYOUTS[q.dtype].integer) >> cut).flatten() + len(table) // 2
    return table.index_select(0, index).view(q.shape)


@untraced  # torch.compile cannot trace the lock that a cached property has before Python 3.12
def _values(fmt: Format) -> tuple[float, ...]:
    return fmt.values


def _ordinal_by_search(q: Tensor, fmt: Format) -> Tensor:
    values = torch.tensor(table_constants(fmt, q.dtype).values, dtype=q.dtype, device=q.device)
    return torch.where(torch.isfinite(q), torch.bucketize(q, values), -1)


@constant_tensors
def _leading_bits(
    fmt: Format, dtype: torch.dtype, device: torch.device
) -> tuple[int, Tensor] | None:
    """Return how many low bits tell no two values apart, and the ordinals by the other bits.

    Those are read as a signed integer, the smallest one first. None if they are too many.
    """
    layout = LAYOUTS[dtype]
    values = torch.tensor(table_constants(fmt, dtype).values, dtype=dtype, device="cpu")
    bits = values.view(layout.integer)
    total = torch.iinfo(layout.integer).bits
    # With no mantissa bit more than this, infinities and NaN are apart from all values.
    cut = next((c for c in range(layout.mantissa, -1, -1) if _differ(bits >> c)), 0)
    half = 1 << (total - 1 - cut)
    if half > LARGEST_TABLE // 2:
        return None
    keys = torch.arange(-half, half, dtype=layout.integer, device="cpu")
    table = _ordinal_by_search((keys << cut).view(dtype), fmt)
    table[(bits >> cut) + half] = torch.arange(len(values), dtype=torch.int64, device="cpu")
    table[0] = table[half]  # -0
    return cut, table.to(device)


def _differ(keys: Tensor) -> bool:
    return len(keys.unique()) == len(keys)


def _doubles(c: FloatConstants) -> bool:
    """Whether twice every value, and the smallest normal one, is a normal number of the dtype."""
    layout = c.layout
    return c.max <= layout.largest / 2 and c.min_normal >= layout.hidden


def _ordinal_by_bits(q: Tensor, fmt: FloatFormat, c: FloatConstants) -> Tensor:
    """For values that can be doubled: bits of |q| + max(|q|, smallest normal value) count upwards.

    From one value to the next they grow by 1 in the last bit that the format has, in its
    subnormals and in all of its binades.
    """
    layout = c.layout
    sign = q.contiguous().view(layout.integer) >> (torch.iinfo(layout.integer).bits - 1)
    size = q.abs().contiguous()
    rank = size.clamp(min=c.least).add_(size).view(layout.integer)
    # -1 for infinity and NaN, 0 for numbers: the bits of infinity and NaN come last.
    missing = (layout.infinity - 1 - rank).__irshift__(torch.iinfo(layout.integer).bits - 1)
    rank.sub_(c.min_normal).__irshift__(c.cut)
    if not fmt.subnormals:  # 0 is followed by the smallest normal value
        rank.sub_((1 << c.mantissa) - 1).clamp_(min=0)
    # -x is ~x + 1.
    rank.bitwise_xor_(sign).sub_(sign).add_(len(_values(fmt)) // 2)
    return rank.bitwise_or_(missing).to(torch.int64)


def _ordinal_by_parts(q: Tensor, fmt: FloatFormat, c: FloatConstants) -> Tensor:
    layout = c.layout
    magnitude = q.abs().contiguous().view(layout.integer)
    # Codes of normal values go on from that of the smallest one.
    normal = ((magnitude - c.min_normal) >> c.cut).to(torch.int64)
    # In two steps, because 2**-sub_quantum may lie beyond the dtype's range.
    unit = q.abs() * 2.0**-c.min_exponent
    small = (unit * 2.0 ** (c.min_exponent - c.sub_quantum)).to(torch.int64)
    first_normal = 1 << c.mantissa if fmt.subnormals else 1
    rank = torch.where(magnitude < c.min_normal, small, normal + first_normal)
    index = len(_values(fmt)) // 2 + torch.where(q < 0, -rank, rank)
    return torch.where(torch.isfinite(q), index, -1)


def interval_width(x: Tensor, fmt: Format, scale: Tensor | None = None) -> Tensor:
    """Return the width of the grid interval that contains ``|x|``, times ``scale``.

    On a grid point it is the interval away from zero; at the largest value and beyond, the one
    below it. ``scale``: None, or a tensor that broadcasts to ``x``; the grid is the format's
    times it. Returns the compute dtype, of ``x``'s shape; NaN for NaN.
    """
    check_floating(x)
    dtype = compute_dtype(x.dtype, fmt)
    size = x.detach().to(dtype).abs()
    s = _scale(scale, size)
    known = _values(fmt)
    last = len(known)
    if isinstance(fmt, FloatFormat) and known[-2] > 0:
        # Intervals differ in width at powers of two only, where the quotient is exact. Clamped to
        # the value before the largest, whose interval away from zero is the last one.
        size = (size / s).clamp_(max=known[-2])
        # The addend is 0, or NaN.
        return _float_width(size, fmt).mul_(s).add_(size.mul_(0))
    values = _padded(fmt, size)
    index = _passed(size, values, s, True).clamp(1, last - 1)
    width = values[index + 1] - values[index]
    return torch.where(torch.isnan(size), torch.nan, width * s)


def _float_width(size: Tensor, fmt: FloatFormat) -> Tensor:
    c = float_constants(fmt, size.dtype)
    layout = c.layout
    magnitude = size.contiguous().view(layout.integer)
    binade = (magnitude >> layout.mantissa).__ilshift__(layout.mantissa)
    if c.sub_quantum == c.min_exponent - c.mantissa:  # as in the binade above
        return binade.clamp_(min=c.min_normal).view(layout.dtype).mul_(2.0**-c.mantissa)
    normal = binade.view(layout.dtype).mul_(2.0**-c.mantissa)
    return torch.where(magnitude < c.min_normal, 2.0**c.sub_quantum, normal)


def neighbours(x: Tensor, fmt: Format, s: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the largest of the values times ``s`` below ``x``, and the smallest above it.

    Strictly so, the products being rounded to the compute dtype and compared as they are, so
    that a number on the grid lies between its neighbours. ``s``: None, or a tensor that
    broadcasts to ``x``. Both are of ``x``'s shape, in the compute dtype; NaN if there is none,
    and for NaN.
    """
    check_floating(x)
    dtype = compute_dtype(x.dtype, fmt)
    x = x.detach().to(dtype)
    s, values = _scale(s, x), _padded(fmt, x)
    below, above = (values[_passed(x, values, s, i) + i] * s for i in (False, True))
    missing = torch.isnan(x)
    return torch.where(missing, torch.nan, below), torch.where(missing, torch.nan, above)


def _scale(s: Tensor | None, like: Tensor) -> Tensor:
    return torch.ones((), dtype=like.dtype, device=like.device) if s is None else s.to(like.dtype)


def _padded(fmt: Format, like: Tensor) -> Tensor:
    """The values, counted from 1, with NaN before and after them."""
    numbers = [torch.nan, *_values(fmt), torch.nan]
    return torch.tensor(numbers, dtype=like.dtype, device=like.device)


def _passed(x: Tensor, values: Tensor, s: Tensor, reached: bool) -> Tensor:
    """How many of ``values[1:-1] * s`` lie below ``x``, or on it if ``reached``; by bisection."""
    last = len(values) - 2
    count = torch.zeros_like(x, dtype=torch.int64)
    for bit in reversed(range(last.bit_length())):
        probe = count + (1 << bit)
        point = values[probe.clamp(max=last)] * s
        passed = (point <= x) if reached else (point < x)
        count = torch.where((probe <= last) & passed, probe, count)
    return count


def nearest_error(
    x: Tensor, fmt: Format, r: Tensor | None = None, s: Tensor | None = None
) -> Tensor:
    """Return ``fake_round(x) - x`` under nearest-even, in the compute dtype."""
    dtype = compute_dtype(x.dtype, fmt)
    return fake_round(x.detach(), fmt, r=r, s=s).to(dtype) - x.detach().to(dtype)
