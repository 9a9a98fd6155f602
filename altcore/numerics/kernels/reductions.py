"""Sums over the elements of tensors that the kernels read."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from altcore.numerics.kernels.build import kernels
from altcore.numerics.kernels.structs import Reduction
from altcore.numerics.kernels.tensors import threads_for


def inner_products(x: Tensor, y: Tensor) -> Tensor:
    """`altcore.numerics.inner_products` of contiguous tensors."""
    sums = torch.empty(4, dtype=torch.float64, device="cpu")
    kernels().altcore_inner_products(ctypes.byref(_reduction(x, y)), sums.data_ptr())
    return sums


def moments(x: Tensor) -> Tensor:
    """`altcore.numerics.moments` of a contiguous tensor that has elements."""
    found = torch.empty(3, dtype=torch.float64, device="cpu")
    kernels().altcore_moments(ctypes.byref(_reduction(x)), found.data_ptr())
    return found


def count_small(x: Tensor, least: float, r: Tensor | None) -> Tensor:
    """`altcore.numerics.count_small` of a contiguous tensor, under a float32 ``r``."""
    number = torch.empty((), dtype=torch.int64, device="cpu")
    reduction = _reduction(x, r=r, least=least)
    kernels().altcore_count_small(ctypes.byref(reduction), number.data_ptr())
    return number


def _reduction(
    x: Tensor, y: Tensor | None = None, *, r: Tensor | None = None, least: float = 0.0
) -> Reduction:
    pointers = [None if t is None else t.data_ptr() for t in (x, y, r)]
    halves = tuple(t is not None and t.dtype is torch.bfloat16 for t in (x, y))
    return Reduction(*pointers, x.numel(), least, halves, threads_for(x.numel()))
