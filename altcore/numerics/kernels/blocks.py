"""Rounding CPU tensors to block formats by the kernels in blocks.h and tiles.h."""

from __future__ import annotations

import ctypes
import math

import torch
from attrs import define
from torch import Tensor

from altcore.formats import BlockFormat, FloatFormat, to_single
from altcore.numerics.block_scales import RoundedBlocks
from altcore.numerics.checks import check_block_rule
from altcore.numerics.kernels.build import kernels
from altcore.numerics.kernels.jobs import Prepared, prepare_constants
from altcore.numerics.kernels.rounding import call_of, can_add, mixed_for
from altcore.numerics.kernels.structs import BlockJob
from altcore.numerics.kernels.tensors import DTYPES
from altcore.numerics.rounding_constants import FLOAT32, is_wide
from altcore.numerics.rules import NEAREST, Meters, Rule, full_rule
from altcore.numerics.scaling import scalar
from altcore.numerics.torch_arithmetic import Key, TorchBlockRounder, TorchRounder
from altcore.numerics.tracing import by_identity, outside_modes

_RULES = ("power", "amax", "two-level")  # as blocks.h numbers them
with outside_modes():
    _NONE = torch.zeros(0, dtype=torch.float32, device="cpu")
_MOST = 1 << 32  # elements; an index of more bits changes the random bits' key within a row


@by_identity
def kernel_block_rounder(fmt: BlockFormat, rule: Rule) -> KernelBlockRounder | None:
    """Return what rounds to ``fmt`` by ``rule``; None if only torch operations do.

    Raises `BadInput` for a rule that is unknown, or that block formats do not take.
    """
    rule = full_rule(rule)
    check_block_rule(fmt, rule)
    element = None if is_wide(fmt) else prepare_constants(fmt.element, rule)
    if element is None:
        return None
    b = BlockJob(job=element.job, largest=to_single(fmt.element.max))
    b.rule = _RULES.index(fmt.rule) if fmt.rule in _RULES else 0
    if b.rule == 0:
        _fill_powers(b, fmt)
    scale = None
    if fmt.scale_format is not None:
        adds = isinstance(fmt.scale_format, FloatFormat)
        scale = prepare_constants(fmt.scale_format, NEAREST) if adds else None
        if scale is None or not scale.job.to_magic:
            return None
        b.scale_job = ctypes.addressof(scale.job)
    return KernelBlockRounder(fmt, TorchRounder(fmt.element, rule), b, (element, scale))


@define(eq=False)
class KernelBlockRounder(TorchBlockRounder):
    """Rounds tensors that `tensors.reads` takes; what it cannot, torch operations do."""

    job: BlockJob
    """Without the tensors of a call."""
    pointed_to: tuple[Prepared | None, ...]

    def round(self, x: Tensor, axis: int, meters: Meters, key: Key) -> RoundedBlocks:
        """Return what `TorchBlockRounder.round` does."""
        wide = x.detach().float() if x.dtype is torch.float16 else x  # the same numbers
        found = self._run(wide, axis, meters, key, fake=False)
        return TorchBlockRounder.round(self, x, axis, meters, key) if found is None else found

    def fake(self, x: Tensor, axis: int, meters: Meters, key: Key) -> Tensor:
        """Return what `TorchBlockRounder.fake` does."""
        found = self._run(x, axis, meters, key, fake=True)
        if found is None:
            return TorchBlockRounder.fake(self, x, axis, meters, key)
        return found.values

    def _run(
        self, x: Tensor, axis: int, meters: Meters, key: Key, *, fake: bool
    ) -> RoundedBlocks | None:
        """Round; ``fake``: there and back, leaving out the blocks' own numbers."""
        mixed = mixed_for(self.element.rule, key)
        if mixed is None or x.dtype not in DTYPES or not 0 < x.numel() <= _MOST:
            return None
        if not can_add(meters):
            return None
        fmt = self.fmt
        if not x.is_contiguous():
            x = x.detach().contiguous()
        b = BlockJob.from_buffer_copy(self.job)
        shape = _lay_out(b, x, fmt, axis)
        lies_across = not fmt.is_square and x.shape[axis % x.ndim + 1 :].numel() > 1
        values = torch.empty_like(x, dtype=x.dtype if fake else torch.float32)
        scales = _NONE
        if not fake:
            scales = torch.empty((2, *shape), dtype=torch.float32, device="cpu")
            b.scales, b.inverses = scales[0].data_ptr(), scales[1].data_ptr()
        call = call_of(x, values, meters, mixed, fake=fake)
        ctypes.memmove(ctypes.byref(b), call, len(call))  # a job begins with these
        scale = None
        if fmt.scale_format is not None:
            most = torch.empty(shape, dtype=torch.int32, device="cpu")
            b.most = most.data_ptr()
            b.whole = kernels().altcore_block_amax(ctypes.byref(b))
            # In float64, rounded once more: of two float32s that is the same as rounding once.
            g = to_single(b.whole / to_single(fmt.largest))
            b.g = min(g, FLOAT32.largest) if math.isfinite(b.whole) else g
            scale = scalar(b.g)
        kernels().altcore_round_blocks(ctypes.byref(b))
        if fake:
            return RoundedBlocks(values, scale, scales, scales)
        if lies_across:  # then the axis of blocks comes last but one
            scales = scales.transpose(-2, -1)
        s, r = scales.reshape(2, -1).unbind()
        return RoundedBlocks(values, scale, s, r)


def _lay_out(b: BlockJob, x: Tensor, fmt: BlockFormat, axis: int) -> tuple[int, int, int]:
    """Fill in how blocks lie in ``x``'s memory; return how many there are along each axis."""
    if fmt.is_square:
        height, width = x.shape[-2:]
        b.block_height, b.block_width = fmt.along(height), fmt.along(width)
    else:
        height, width = x.shape[axis], x.shape[axis % x.ndim + 1 :].numel()
        b.block_height, b.block_width = fmt.along(height), 1
        if width == 1:  # in rows; in a single one, if no block ends early
            height, width = x.numel() // height, height
            if width % fmt.block == 0:
                height, width = 1, x.numel()
            b.block_height, b.block_width = 1, fmt.along(width)
    b.outer, b.height, b.width = x.numel() // (height * width), height, width
    return b.outer, -(-height // b.block_height), -(-width // b.block_width)


def _fill_powers(b: BlockJob, fmt: BlockFormat) -> None:
    fraction, inclusive = fmt.next_from
    past = (2 * fraction - 1) * 2**23  # as the bits after the leading one
    b.threshold = math.ceil(past) if inclusive else math.floor(past) + 1
    b.top = fmt.element_exponent
    is_code = fmt.rule != "power-of-two"  # then of E8M0
    b.lowest_power, b.highest_power = (-127, 127) if is_code else (-126, 126)
    b.power_of_zero = -127 if is_code else 0
