"""The largest magnitude of a tensor, and what else may stand for it when a scale is chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from altcore.errors import BadInput
from altcore.numerics import kernels, torch_arithmetic


def amax(x: Tensor, axis: int | Sequence[int] | None = None) -> Tensor:
    """Return the largest magnitude in ``x``, 0-dim, float32 (float64 for float64).

    With ``axis``, one or several, the largest along them, which stay with size 1. NaN and
    infinities propagate; of no element it is 0.
    """
    if axis is None and kernels.reads(x):
        return kernels.amax(x)
    return torch_arithmetic.amax(x, axis)


def root_mean_square(x: Tensor, axis: int | Sequence[int] | None = None) -> Tensor:
    """Return the root mean square of ``x``; ``axis``, shape and dtype are those of `amax`."""
    largest = amax(x, axis)
    if x.numel() == 0:
        return largest
    axes = None if axis is None else (axis,) if isinstance(axis, int) else tuple(axis)
    # Of numbers up to 1, so that no square overflows or vanishes.
    unit = torch.where((largest > 0) & torch.isfinite(largest), largest, 1.0)
    squares = (x.detach().to(largest.dtype) / unit).square()
    return squares.mean(axes, keepdim=axis is not None).sqrt() * unit


def quantile(x: Tensor, share: float, axis: int | Sequence[int] | None = None) -> Tensor:
    """Return the smallest magnitude that at least ``share`` of the elements do not pass.

    Exact, by selection. If that is 0 and not all elements are, or if one is not finite, the
    result is that of `amax`. ``axis``, shape and dtype are as there. Raises `BadInput` for a
    ``share`` outside (0, 1].
    """
    if not 0 < share <= 1:
        raise BadInput(f"a quantile lies in (0, 1], not at {share}")
    largest = amax(x, axis)
    if x.numel() == 0:
        return largest
    size = x.detach().abs()
    if axis is None:
        rows = size.reshape(1, -1)
    else:
        axes = [a % x.ndim for a in ((axis,) if isinstance(axis, int) else axis)]
        kept = [i for i in range(x.ndim) if i not in axes]
        rows = size.permute(*kept, *axes).reshape(*(x.shape[i] for i in kept), -1)
    count = math.ceil(Fraction(str(share)) * rows.shape[-1])
    found = rows.kthvalue(count).values.to(largest.dtype).reshape(largest.shape)
    return torch.where((found > 0) & torch.isfinite(largest), found, largest)
