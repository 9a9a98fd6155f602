"""The epilogue of a product of grid values: scales, bias, and one rounding."""

from __future__ import annotations

import torch
from torch import Tensor

from altcore.numerics import kernels


def scale_output(
    y: Tensor,
    scales: tuple[Tensor | None, Tensor | None],
    bias: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return ``((y * scales[0]) * scales[1]) + bias``, each rounded to float32, in ``dtype``.

    ``y``: of any shape, and no longer needed: its memory may be used. ``scales``: each None for
    1, 0-dim, or a tensor that broadcasts to ``y``, as ``bias`` does. ``dtype``: None for float32,
    or for float64 if ``y`` is, and then the arithmetic is float64, too.
    """
    dtype = dtype or (torch.float64 if y.dtype == torch.float64 else torch.float32)
    if kernels.can_scale(y, scales, bias, dtype):
        return kernels.scale_output(y, scales, bias, dtype)
    y = y.to(torch.float32) if y.dtype in (torch.bfloat16, torch.float16) else y
    for scale in scales:
        y = y if scale is None else y.mul_(scale)
    y = y if bias is None else y.add_(bias)
    return y.to(dtype)
