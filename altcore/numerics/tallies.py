"""Passes over tensors that only add up: inner products, moments, and small elements."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from altcore.numerics.native import fits, handle_for, threads_for

_PART = 1 << 16
"""Elements that stay in a CPU's cache with what is made of them."""
_PART_ELSEWHERE = 1 << 22
"""Elements whose copies in float64 are small beside a model."""


class _Tally(ctypes.Structure):
    """``struct tally`` of tallies.h, field by field."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("r", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("least", ctypes.c_float),
        ("is_half", ctypes.c_int32 * 2),
        ("threads", ctypes.c_int32),
    )


def inner_products(x: Tensor, y: Tensor) -> Tensor:
    """Return the sums of ``x * x``, ``y * y``, ``x * y`` and ``(x - y) ** 2``: float64 (4,).

    The tensors are of one shape; all is computed in float64.
    """
    if x.shape != y.shape:
        raise ValueError(f"two shapes: {tuple(x.shape)} and {tuple(y.shape)}")
    x, y = x.detach().contiguous(), y.detach().contiguous()
    handle = handle_for(x) if handle_for(y) is not None else None
    if handle is not None:
        sums = torch.empty(4, dtype=torch.float64, device="cpu")
        handle.altcore_inner_products(ctypes.byref(_job(x, y)), sums.data_ptr())
        return sums
    total = torch.zeros(4, dtype=torch.float64, device=x.device)
    for parts in zip(_parts(x), _parts(y), strict=True):
        a, b = (part.double() for part in parts)
        d = a - b
        total += torch.stack([a.dot(a), b.dot(b), a.dot(b), d.dot(d)])
    return total


def moments(x: Tensor) -> Tensor:
    """Return number, mean and sum of squared deviations of the elements: float64 (3,)."""
    x = x.detach()
    handle = handle_for(x) if x.is_contiguous() and x.numel() else None
    if handle is not None:
        found = torch.empty(3, dtype=torch.float64, device="cpu")
        handle.altcore_moments(ctypes.byref(_job(x)), found.data_ptr())
        return found
    parts = [part.sum(dtype=torch.float64) for part in _parts(x)]
    mean = torch.stack(parts).sum() / x.numel()
    apart = (part.double() - mean for part in _parts(x))
    squares = torch.stack([part.dot(part) for part in apart]).sum()
    return torch.stack([torch.full_like(mean, x.numel()), mean, squares])


def count_small(x: Tensor, least: float, r: Tensor | None = None) -> Tensor:
    """Return how many elements other than 0 have ``|x * r| < least``, 0-dim int64.

    ``r``: None for 1, or of one element, of the type that is computed in: float64 for float64,
    else float32, to which ``x`` goes first.
    """
    x = x.detach()
    dtype = torch.promote_types(x.dtype, torch.float32)
    handle = handle_for(x) if x.is_contiguous() else None
    if handle is not None and (r is None or (fits(r, torch.float32) and r.numel() == 1)):
        number = torch.empty((), dtype=torch.int64, device="cpu")
        job = _job(x, r=r, least=least)
        handle.altcore_count_small(ctypes.byref(job), number.data_ptr())
        return number
    number = torch.zeros((), dtype=torch.int64, device=x.device)
    for part in _parts(x):
        y = part.to(dtype)
        size = y.abs() if r is None else (y * r.to(dtype)).abs_()
        number += torch.count_nonzero((size < least).logical_and_(part != 0))
    return number


def _parts(x: Tensor) -> tuple[Tensor, ...]:
    return x.flatten().split(_PART if x.is_cpu else _PART_ELSEWHERE)


def _job(
    x: Tensor, y: Tensor | None = None, *, r: Tensor | None = None, least: float = 0.0
) -> _Tally:
    pointers = [None if t is None else t.data_ptr() for t in (x, y, r)]
    halves = tuple(t is not None and t.dtype is torch.bfloat16 for t in (x, y))
    return _Tally(*pointers, x.numel(), least, halves, threads_for(x.numel()))
