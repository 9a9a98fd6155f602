"""The largest magnitude of a tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from altcore.numerics.kernels.build import kernels
from altcore.numerics.kernels.tensors import threads_for
from altcore.numerics.scaling import empty_scalar


def amax(x: Tensor) -> Tensor:
    """Return the largest magnitude in ``x``, 0-dim float32; for a tensor that the kernels read."""
    if not x.is_contiguous():
        x = x.detach()
        x = x.mT if x.ndim >= 2 and x.mT.is_contiguous() else x.contiguous()
    count, result = x.numel(), empty_scalar()
    is_half = x.dtype is torch.bfloat16
    kernels().altcore_amax(x.data_ptr(), count, is_half, threads_for(count), result.data_ptr())
    return result
