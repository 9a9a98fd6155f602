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
    if scale is not None:
        size = size / scale.to(dtype)
    values = table_plan(fmt, dtype).values
    # Clamped to the value before the largest, whose interval away from zero is the last one.
    inside = size.clamp(max=values[-2])
    if isinstance(fmt, FloatFormat) and values[-2] > 0:
        width = _float_width(inside, fmt)
    else:
        grid = torch.tensor(values, dtype=dtype, device=x.device)
        index = torch.bucketize(inside, grid, right=True).clamp(1, len(values) - 1)
        width = grid[index] - grid[index - 1]
    if scale is not None:
        width = width * scale.to(dtype)
    return torch.where(torch.isnan(size), torch.nan, width)


def _float_width(size: Tensor, fmt: FloatFormat) -> Tensor:
    plan = float_plan(fmt, size.dtype)
    layout = plan.layout
    magnitude = size.contiguous().view(layout.integer)
    binade = (magnitude >> layout.mantissa << layout.mantissa).view(layout.dtype)
    normal = binade * 2.0**-plan.mantissa
    return torch.where(magnitude < plan.min_normal, 2.0**plan.sub_quantum, normal)


def grid_error(x: Tensor, fmt: Format, r: Tensor | None = None, s: Tensor | None = None) -> Tensor:
    """Return ``fake_round(x) - x`` under nearest-even, in the compute dtype."""
    dtype = compute_dtype(x.dtype, fmt)
    return fake_round(x.detach(), fmt, r=r, s=s).to(dtype) - x.detach().to(dtype)
