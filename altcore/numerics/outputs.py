"""From a product of grid values to a layer's output: scales, bias, and one rounding."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from altcore.numerics.native import DTYPES, fits, handle_for, threads_for


class _Output(ctypes.Structure):
    """``struct output`` of outputs.h, field by field."""

    _fields_ = (
        ("y", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("scales", ctypes.c_void_p * 2),
        ("bias", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("is_half", ctypes.c_int32),
        ("to_half", ctypes.c_int32),
        ("by_row", ctypes.c_int32 * 2),
        ("threads", ctypes.c_int32),
    )


def scale_output(
    y: Tensor,
    scales: tuple[Tensor | None, Tensor | None],
    bias: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return ``((y * scales[0]) * scales[1]) + bias``, each rounded to float32, in ``dtype``.

    ``y``: of any shape, and no longer needed: its memory may be used. ``scales``: None for 1,
    0-dim, or what broadcasts to ``y``, as ``bias`` does. ``dtype``: None for float32, or for
    float64 where ``y`` is, in which case the arithmetic is, too.
    """
    dtype = dtype or (torch.float64 if y.dtype == torch.float64 else torch.float32)
    result = _by_kernel(y, scales, bias, dtype)
    if result is not None:
        return result
    y = y.to(torch.float32) if y.dtype in (torch.bfloat16, torch.float16) else y
    for scale in scales:
        y = y if scale is None else y.mul_(scale)
    y = y if bias is None else y.add_(bias)
    return y.to(dtype)


def _by_kernel(
    y: Tensor,
    scales: tuple[Tensor | None, Tensor | None],
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor | None:
    """By a compiled kernel in one pass; None where it does not apply."""
    handle = handle_for(y)
    if handle is None or dtype not in DTYPES or not y.is_contiguous():
        return None
    # A row is all that lies beside one another along the axes from the second on.
    rows, in_row = (y.shape[0], y.shape[1:]) if y.ndim > 1 else (1, y.shape)
    if bias is not None and (bias.shape != in_row or not fits(bias, torch.float32)):
        return None
    job = _Output()
    for i, scale in enumerate(scales):
        if scale is None:
            continue
        is_row = y.ndim > 1 and scale.shape == (rows, *(1 for _ in in_row))
        is_one = scale.numel() == 1 and scale.ndim <= y.ndim
        if not fits(scale, torch.float32) or not (is_row or is_one):
            return None
        job.scales[i], job.by_row[i] = scale.data_ptr(), is_row
    result = y if y.dtype == dtype else torch.empty(y.shape, dtype=dtype, device="cpu")
    job.y, job.out = y.data_ptr(), result.data_ptr()
    job.bias = None if bias is None else bias.data_ptr()
    job.rows, job.columns = rows, in_row.numel()
    job.is_half, job.to_half = y.dtype is torch.bfloat16, dtype is torch.bfloat16
    job.threads = threads_for(y.numel())
    handle.altcore_scale_output(ctypes.byref(job))
    return result
