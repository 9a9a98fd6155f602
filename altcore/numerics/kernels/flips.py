"""One step of a weight on its grid, in one pass over memory."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from altcore.numerics.kernels.build import kernels
from altcore.numerics.kernels.structs import FlipsJob
from altcore.numerics.kernels.tensors import fits, reads, threads_for


def can_follow(before: Tensor, after: Tensor, earlier: Tensor, flipped_at: Tensor) -> bool:
    """Whether the kernels can read these, and update the last two."""
    if not reads(after) or not all(fits(t, after.dtype) for t in (before, after, earlier)):
        return False
    same = before.shape == after.shape == earlier.shape == flipped_at.shape
    return same and fits(flipped_at, torch.int32)


def follow_flips(
    before: Tensor, after: Tensor, earlier: Tensor, flipped_at: Tensor, step: int, since: int
) -> Tensor:
    """`altcore.numerics.follow_flips` of tensors that `can_follow` takes, on one grid."""
    found, flips = torch.empty(2, dtype=torch.int64, device="cpu"), FlipsJob()
    flips.before, flips.after = before.data_ptr(), after.data_ptr()
    flips.earlier, flips.flipped_at = earlier.data_ptr(), flipped_at.data_ptr()
    flips.found, flips.n, flips.step, flips.since = found.data_ptr(), after.numel(), step, since
    flips.is_half, flips.threads = after.dtype is torch.bfloat16, threads_for(after.numel())
    kernels().altcore_follow_flips(ctypes.byref(flips))
    return found
