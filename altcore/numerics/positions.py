"""Where numbers stand on a format's grid: positions, interval widths, rounding error."""

from __future__ import annotations

import torch
from torch import Tensor

from altcore.formats import FloatFormat, Format
from altcore.numerics.grids import check_floating, fake_round
from altcore.numerics.plan import compute_dtype, float_plan, table_plan


def position(q: Tensor, fmt: Format) -> Tensor:
    """Return the index of each grid value in ``fmt.values``, int64, of ``q``'s shape.

    ``q`` holds grid values, as `round_to_grid` returns them. -0 counts as 0. NaN and infinities
    have no position: -1.
    """
    check_floating(q)
    q = q.to(compute_dtype(q.dtype, fmt))
    if isinstance(fmt, FloatFormat):
        index = _float_position(q, fmt)
    else:
        values = torch.tensor(table_plan(fmt, q.dtype).values, dtype=q.dtype, device=q.device)
        index = torch.bucketize(q, values)
    return torch.where(torch.isfinite(q), index, -1)


def _float_position(q: Tensor, fmt: FloatFormat) -> Tensor:
    plan = float_plan(fmt, q.dtype)
    layout = plan.layout
    magnitude = q.abs().contiguous().view(layout.integer)
    # Codes of normal values go on from that of the smallest one.
    normal = ((magnitude - plan.min_normal) >> plan.cut).to(torch.int64)
    # In two steps, because 2**-sub_quantum may lie beyond the dtype's range.
    unit = q.abs() * 2.0**-plan.min_exponent
    small = (unit * 2.0 ** (plan.min_exponent - plan.sub_quantum)).to(torch.int64)
    first_normal = 1 << plan.mantissa if fmt.subnormals else 1
    rank = torch.where(magnitude < plan.min_normal, small, normal + first_normal)
    return len(fmt.values) // 2 + torch.where(q < 0, -rank, rank)


def stiffness(x: Tensor, fmt: Format, scale: Tensor | None = None) -> Tensor:
    """Return the width of the grid interval that contains ``|x|``, times ``scale``.

    On a grid point it is the interval away from zero; at the largest value and beyond, the one
    below it. ``scale``: None, or a tensor that broadcasts to ``x``; the grid is the format's
    times it. Returns the compute dtype, of ``x``'s shape; NaN for NaN.
    """
    check_floating(x)
    dtype = compute_dtype(x.dtype, fmt)
    size = x.detach().to(dtype).abs()
    s = _scale(scale, size)
    last = len(fmt.values)
    if isinstance(fmt, FloatFormat) and fmt.values[-2] > 0:
        # Intervals differ in width at powers of two only, where the quotient is exact. Clamped to
        # the value before the largest, whose interval away from zero is the last one.
        width = _float_width((size / s).clamp(max=fmt.values[-2]), fmt)
    else:
        values = _padded(fmt, size)
        index = _passed(size, values, s, True).clamp(1, last - 1)
        width = values[index + 1] - values[index]
    return torch.where(torch.isnan(size), torch.nan, width * s)


def _float_width(size: Tensor, fmt: FloatFormat) -> Tensor:
    plan = float_plan(fmt, size.dtype)
    layout = plan.layout
    magnitude = size.contiguous().view(layout.integer)
    binade = (magnitude >> layout.mantissa << layout.mantissa).view(layout.dtype)
    normal = binade * 2.0**-plan.mantissa
    return torch.where(magnitude < plan.min_normal, 2.0**plan.sub_quantum, normal)


def neighbours(x: Tensor, fmt: Format, s: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the largest of the values times ``s`` below ``x``, and the smallest above it.

    Strictly so, the products being rounded to the compute dtype and compared as they are, so
    that a number on the grid lies between its neighbours. ``s``: None, or a tensor that
    broadcasts to ``x``. Both are of ``x``'s shape, in the compute dtype; NaN where there is none,
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
    numbers = [torch.nan, *fmt.values, torch.nan]
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


def grid_error(x: Tensor, fmt: Format, r: Tensor | None = None, s: Tensor | None = None) -> Tensor:
    """Return ``fake_round(x) - x`` under nearest-even, in the compute dtype."""
    dtype = compute_dtype(x.dtype, fmt)
    return fake_round(x.detach(), fmt, r=r, s=s).to(dtype) - x.detach().to(dtype)
