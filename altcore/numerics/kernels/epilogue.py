"""A product's epilogue: scales, bias, and one rounding, in one pass over memory."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from altcore.numerics.kernels.build import kernels
from altcore.numerics.kernels.structs import Epilogue
from altcore.numerics.kernels.tensors import DTYPES, fits, reads, threads_for

Scales = tuple[Tensor | None, Tensor | None]


def can_scale(y: Tensor, scales: Scales, bias: Tensor | None, dtype: torch.dtype) -> bool:
    """Whether the kernels can read these, and write ``dtype``.

    A scale is one number, or has one for each row; a bias has one for each column. A row is all
    that lies beside one another along the axes from the second on.
    """
    if not reads(y) or dtype not in DTYPES or not y.is_contiguous():
        return False
    if bias is not None and not (bias.shape == _in_row(y) and fits(bias, torch.float32)):
        return False
    return all(
        s is None
        or (fits(s, torch.float32) and (_is_by_row(s, y) or (s.numel() == 1 and s.ndim <= y.ndim)))
        for s in scales
    )


def scale_output(y: Tensor, scales: Scales, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`altcore.numerics.scale_output` of what `can_scale` takes."""
    call = Epilogue()
    for i, scale in enumerate(scales):
        if scale is not None:
            call.scales[i], call.by_row[i] = scale.data_ptr(), _is_by_row(scale, y)
    result = y if y.dtype == dtype else torch.empty(y.shape, dtype=dtype, device="cpu")
    call.y, call.out = y.data_ptr(), result.data_ptr()
    call.bias = None if bias is None else bias.data_ptr()
    call.rows, call.columns = (y.shape[0] if y.ndim > 1 else 1), _in_row(y).numel()
    call.is_half, call.to_half = y.dtype is torch.bfloat16, dtype is torch.bfloat16
    call.threads = threads_for(y.numel())
    kernels().altcore_scale_output(ctypes.byref(call))
    return result


def _in_row(y: Tensor) -> torch.Size:
    """The shape of a row."""
    return y.shape[1:] if y.ndim > 1 else y.shape


def _is_by_row(scale: Tensor, y: Tensor) -> bool:
    return scale.ndim > 0 and y.ndim > 1 and scale.shape == (y.shape[0], *[1] * (y.ndim - 1))
