"""Rounding to a format's grid in torch operations: exact, on every device, without transfers.

`round_float` works on the integer significand, where every rounding is a comparison of the
bits that are cut off; `round_table` searches the thresholds of `altcore.numerics.plan`. Both
return the grid value and where rounding passed the largest value; there the grid value is the
largest of that side.
"""

from __future__ import annotations

import torch
from torch import Tensor

from altcore.formats import FloatFormat, Format
from altcore.numerics.hashing import RANDOM_BITS
from altcore.numerics.plan import FloatPlan, float_plan, table_plan, thresholds

_DEEPEST = 84  # bits: shifted so far, nothing of a float64 significand is left


def round_unscaled(
    y: Tensor, fmt: Format, rounding: str, noise: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Round ``y`` (float32 or float64) to ``fmt``: grid values saturated, and the overflows.

    ``noise`` holds the random bits of each element for stochastic rounding. NaN gives NaN.
    A zero has the sign of ``y``.
    """
    if isinstance(fmt, FloatFormat):
        return round_float(y, float_plan(fmt, y.dtype), rounding, noise)
    return round_table(y, fmt, rounding, noise)


def round_float(
    y: Tensor, plan: FloatPlan, rounding: str, noise: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`round_unscaled` for a float format."""
    layout = plan.layout
    bits = y.contiguous().view(layout.integer)
    magnitude = bits & layout.magnitude
    exponent = (magnitude >> layout.mantissa).clamp(min=1)
    subnormal = magnitude < layout.hidden
    fraction = magnitude & (layout.hidden - 1)
    significand = torch.where(subnormal, fraction, fraction | layout.hidden)
    # The number is significand * 2**(exponent - bias - mantissa); `cut` bits of it are lost.
    low = magnitude < plan.min_normal
    cut = (plan.sub_quantum + layout.bias + layout.mantissa) - exponent
    cut = torch.where(low, cut, plan.cut)
    if noise is None:
        shift = cut = cut.clamp(max=layout.mantissa + 3)  # from here on, less than half
    else:
        significand, cut = significand.to(torch.int64), cut.to(torch.int64).clamp(max=_DEEPEST)
        shift = cut.clamp(max=62)
    whole = significand >> shift
    rest = significand - (whole << shift)
    if noise is not None:
        away = _share(rest, cut) > noise
    elif rounding in ("nearest-even", "nearest-away"):
        half = torch.ones_like(cut) << (cut - 1)
        away = rest > half
        if rounding == "nearest-away":
            away = away | (rest == half)
        else:
            code = torch.where(low, whole, (magnitude >> plan.cut) ^ plan.flip)
            away = away | ((rest == half) & (code & 1 == 1))
    elif rounding == "to-zero":
        away = torch.zeros_like(low)
    else:
        away = (rest != 0) & ((bits < 0) if rounding == "down" else (bits >= 0))
    up = away.to(layout.integer)
    small = (whole.to(layout.integer) + up).to(layout.dtype) * 2.0**plan.sub_quantum
    large = (magnitude - rest.to(layout.integer) + (up << plan.cut)).view(layout.dtype)
    size = torch.where(low, small, large)
    over = size > plan.max
    value = torch.copysign(size.clamp(max=plan.max), y)
    return torch.where(torch.isnan(y), torch.nan, value), over & ~torch.isnan(y)


def _share(rest: Tensor, cut: Tensor) -> Tensor:
    """``rest / 2**cut`` in units of 2**-RANDOM_BITS, rounded to nearest with ties down.

    Centred: random bits h stand for the number (h + 1/2) / 2**RANDOM_BITS. Both int64.
    """
    fine = rest << (RANDOM_BITS - cut).clamp(min=0)
    half = torch.ones_like(cut) << (cut - RANDOM_BITS - 1).clamp(min=0)
    coarse = (rest + half - 1) >> (cut - RANDOM_BITS).clamp(min=0)
    return torch.where(cut <= RANDOM_BITS, fine, coarse)


def round_table(
    y: Tensor, fmt: Format, rounding: str, noise: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`round_unscaled` for a format given by its values."""
    plan = table_plan(fmt, y.dtype)
    last = len(plan.values) - 1

    def tensor(numbers: tuple[float, ...], dtype: torch.dtype = y.dtype) -> Tensor:
        return torch.tensor(numbers, dtype=dtype, device=y.device)

    if noise is not None:
        below = torch.bucketize(y, tensor(plan.starts), right=True) - 1
        interval = below.clamp(0, last + 1)
        grid = tensor(plan.grid, torch.float64)
        low, high = grid[interval], grid[interval + 1]
        inner_above = torch.where(high == -low, y >= 0, high.abs() < low.abs())
        inner, outer = torch.where(inner_above, high, low), torch.where(inner_above, low, high)
        distance, width = (y.double() - inner).abs(), (outer - inner).abs()
        outside = distance * 2.0**RANDOM_BITS > (noise.double() + 0.5) * width
        # Position in the extended grid: the upper end if exactly one of the two holds.
        index = interval + (inner_above ^ outside).to(torch.int64)
        index = torch.where(below < 0, 0, torch.where(below > last + 1, last + 2, index))
    else:
        index = torch.bucketize(y, tensor(thresholds(fmt, rounding, y.dtype)), right=True)
    value = tensor(plan.values)[(index - 1).clamp(0, last)]
    value = torch.where(value == 0, torch.copysign(torch.zeros_like(y), y), value)
    missing = torch.isnan(y)
    over = ((index == 0) | (index == last + 2)) & ~missing
    return torch.where(missing, torch.nan, value), over
