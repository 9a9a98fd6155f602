"""The ordinals of grid values of a floating-point format."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from altcore.formats import FloatFormat
from altcore.numerics.kernels.build import kernels
from altcore.numerics.kernels.structs import Ordinals
from altcore.numerics.kernels.tensors import threads_for
from altcore.numerics.rounding_constants import FloatConstants


def ordinal(q: Tensor, fmt: FloatFormat, constants: FloatConstants) -> Tensor:
    """Return the ordinals of contiguous float32 grid values, int64, by doubling them."""
    result = torch.empty_like(q, dtype=torch.int64)
    omitted = 0 if fmt.subnormals else (1 << constants.mantissa) - 1
    middle, threads = len(fmt.values) // 2, threads_for(q.numel())
    numbers = (constants.least, constants.min_normal, constants.cut, omitted, middle, threads)
    call = Ordinals(q.data_ptr(), result.data_ptr(), q.numel(), *numbers)
    kernels().altcore_find_ordinals(ctypes.byref(call))
    return result
