"""Following the flips of values on a grid, and those that lead back."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from altcore.numerics.native import fits, handle_for, threads_for

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By bytes."""


class _Flips(ctypes.Structure):
    """``struct flips`` of flips.h, field by field."""

    _fields_ = (
        ("before", ctypes.c_void_p),
        ("after", ctypes.c_void_p),
        ("earlier", ctypes.c_void_p),
        ("flipped_at", ctypes.c_void_p),
        ("counts", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("step", ctypes.c_int32),
        ("since", ctypes.c_int32),
        ("is_half", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    )


def follow_flips(
    before: Tensor,
    after: Tensor,
    earlier: Tensor,
    flipped_at: Tensor,
    step: int,
    *,
    since: int,
    scales: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Take in one step of values on a grid; return the flips and those that go back, int64 (2,).

    ``before`` and ``after``: the values around the step, of one shape and dtype; an element whose
    values differ has flipped. ``earlier``, of their dtype, and ``flipped_at``, int32: what each
    element was before its last flip (NaN: there was none), and the step of that; both are updated
    in place. A flip to ``earlier`` goes back, if that flip was in step ``since`` or later.
    ``scales``: those before and after, 0-dim; where they differ the grid is another one, and
    nothing counts as a flip. There is no host read.
    """
    before, after = before.detach().resolve_neg(), after.detach()
    if after.is_cpu and scales is not None:
        if not torch.equal(*scales):
            return torch.zeros(2, dtype=torch.int64, device="cpu")
        scales = None
    found = None if scales else _by_kernel(before, after, earlier, flipped_at, step, since)
    if found is not None:
        return found
    flipped = after != before
    flipped = flipped.logical_and_(scales[0] == scales[1]) if scales else flipped
    back = (after == earlier).logical_and_(flipped).logical_and_(flipped_at >= since)
    counts = torch.stack([torch.count_nonzero(flipped), torch.count_nonzero(back)])
    torch.maximum(flipped_at, flipped.to(torch.int32).mul_(step), out=flipped_at)
    # By bits: faster than a choice that nobody can predict.
    integer = _INTEGERS[earlier.element_size()]
    bits, mask = earlier.view(integer), flipped.to(integer).neg_()
    bits.bitwise_xor_(mask.bitwise_and_(bits ^ before.contiguous().view(integer)))
    return counts


def _by_kernel(
    before: Tensor, after: Tensor, earlier: Tensor, flipped_at: Tensor, step: int, since: int
) -> Tensor | None:
    """By a compiled kernel in one pass; None where it does not apply."""
    handle = handle_for(after)
    if handle is None or not all(fits(t, after.dtype) for t in (before, after, earlier)):
        return None
    if not fits(flipped_at, torch.int32):
        return None
    if not before.shape == after.shape == earlier.shape == flipped_at.shape:
        return None
    counts, job = torch.empty(2, dtype=torch.int64, device="cpu"), _Flips()
    job.before, job.after = before.data_ptr(), after.data_ptr()
    job.earlier, job.flipped_at = earlier.data_ptr(), flipped_at.data_ptr()
    job.counts, job.n, job.step, job.since = counts.data_ptr(), after.numel(), step, since
    job.is_half, job.threads = after.dtype is torch.bfloat16, threads_for(after.numel())
    handle.altcore_follow_flips(ctypes.byref(job))
    return counts
