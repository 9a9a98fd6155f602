"""Following the flips of values on a grid, and those that lead back."""

from __future__ import annotations

import torch
from torch import Tensor

from altcore.numerics import kernels

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By bytes."""


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
    """Follow one step of values on a grid: count the flips and those that go back, int64 (2,).

    Args:
        before: the values before the step; an element that changes has flipped.
        after: those after it, of the same shape and dtype.
        earlier: of their dtype, the value of each element before its last flip; NaN if there was
            none. Updated in place.
        flipped_at: int32, the step of that flip. Updated in place.
        step: the number of this step.
        since: a flip to ``earlier`` goes back if that flip was in this step or later.
        scales: those before and after, 0-dim. If they differ the grid is another one, and nothing
            counts as a flip.

    There is no host read on a GPU.
    """
    before, after = before.detach().resolve_neg(), after.detach()
    if after.is_cpu and scales is not None:
        if not torch.equal(*scales):
            return torch.zeros(2, dtype=torch.int64, device="cpu")
        scales = None
    if scales is None and kernels.can_follow(before, after, earlier, flipped_at):
        return kernels.follow_flips(before, after, earlier, flipped_at, step, since)
    flipped = after != before
    flipped = flipped.logical_and_(scales[0] == scales[1]) if scales else flipped
    back = (after == earlier).logical_and_(flipped).logical_and_(flipped_at >= since)
    found = torch.stack([torch.count_nonzero(flipped), torch.count_nonzero(back)])
    torch.maximum(flipped_at, flipped.to(torch.int32).mul_(step), out=flipped_at)
    # By bits: faster than a choice that nobody can predict.
    integer = _INTEGERS[earlier.element_size()]
    bits, mask = earlier.view(integer), flipped.to(integer).neg_()
    bits.bitwise_xor_(mask.bitwise_and_(bits ^ before.contiguous().view(integer)))
    return found
