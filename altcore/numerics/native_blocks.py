"""Handing CPU tensors and block formats to the compiled kernels, to what is in `blocks.h`.

Like `altcore.numerics.native`: None where the kernels do not apply.
"""

from __future__ import annotations

import ctypes
import functools
import math

import torch
from attrs import frozen
from torch import Tensor

from altcore.formats import BlockFormat, FloatFormat
from altcore.numerics.constants import outside_modes
from altcore.numerics.native import call_of, can_add, handle_for, mixed_for, number
from altcore.numerics.native_formats import Job, Prepared, prepare
from altcore.numerics.plan import FLOAT32, is_wide, to_single

_RULES = ("power", "amax", "two-level")  # as blocks.h numbers them
with outside_modes():
    _NONE = torch.zeros(0, dtype=torch.float32, device="cpu")
_MOST = 1 << 32  # elements; an index of more bits changes the random bits' key within a row


class _BlockJob(ctypes.Structure):
    """``struct block_job`` of blocks.h, field by field."""

    _fields_ = (
        ("job", Job),
        ("scale_job", ctypes.c_void_p),
        ("most", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("inverses", ctypes.c_void_p),
        ("outer", ctypes.c_int64),
        ("height", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("block_height", ctypes.c_int64),
        ("block_width", ctypes.c_int64),
        ("rule", ctypes.c_int32),
        ("top", ctypes.c_int32),
        ("threshold", ctypes.c_int32),
        ("lowest_power", ctypes.c_int32),
        ("highest_power", ctypes.c_int32),
        ("power_of_zero", ctypes.c_int32),
        ("largest", ctypes.c_float),
        ("whole", ctypes.c_float),
        ("g", ctypes.c_float),
    )


def round_blocks_native(
    x: Tensor,
    fmt: BlockFormat,
    axis: int,
    rounding: str,
    counts: Tensor | None,
    errors: Tensor | None,
    key: int | Tensor | None,
    *,
    fake: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor] | None:
    """Round as `altcore.numerics.blocks` does; None where the kernels do not apply.

    Returns what `Blocks` holds. ``fake``: the values are the tensor that is meant, in ``x``'s
    dtype, and the blocks' numbers stay empty.
    """
    handle = handle_for(x)
    if handle is None or not 0 < x.numel() <= _MOST:
        return None
    prepared = _prepare_blocks(fmt, rounding)
    mixed = None if prepared is None else mixed_for(prepared.element, key)
    if prepared is None or mixed is None or not can_add(counts, errors):
        return None
    if not x.is_contiguous():
        x = x.contiguous()
    b = _BlockJob.from_buffer_copy(prepared.job)
    shape = _lay_out(b, x, fmt, axis)
    lies_across = not fmt.is_square and x.shape[axis % x.ndim + 1 :].numel() > 1
    values = torch.empty_like(x, dtype=x.dtype if fake else torch.float32)
    scales = _NONE
    if not fake:
        scales = torch.empty((2, *shape), dtype=torch.float32, device="cpu")
        b.scales, b.inverses = scales[0].data_ptr(), scales[1].data_ptr()
    call = call_of(x, values, counts, errors, mixed, fake=fake)
    ctypes.memmove(ctypes.byref(b), call, len(call))  # a job begins with these
    scale = None
    if fmt.scale_format is not None:
        most = torch.empty(shape, dtype=torch.int32, device="cpu")
        b.most = most.data_ptr()
        b.whole = handle.altcore_block_amax(ctypes.byref(b))
        # In float64, rounded once more: of two float32s that is the same as rounding once.
        g = to_single(b.whole / to_single(fmt.largest))
        b.g = min(g, FLOAT32.largest) if math.isfinite(b.whole) else g
        scale = number(b.g)
    handle.altcore_round_blocks(ctypes.byref(b))
    if fake:
        return values, scale, scales, scales
    if lies_across:  # then the axis of blocks comes last but one
        scales = scales.transpose(-2, -1)
    s, r = scales.reshape(2, -1).unbind()
    return values, scale, s, r


def _lay_out(b: _BlockJob, x: Tensor, fmt: BlockFormat, axis: int) -> tuple[int, int, int]:
    """Say how blocks lie in ``x``'s memory; returns how many there are along each of its axes."""
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


@frozen
class _PreparedBlocks:
    """A job without its tensors, and what it points to, kept alive."""

    job: _BlockJob
    element: Prepared
    scale: Prepared | None


@functools.cache
def _prepare_blocks(fmt: BlockFormat, rounding: str) -> _PreparedBlocks | None:
    element = None if is_wide(fmt) else prepare(fmt.element, rounding, "saturate")
    if element is None:
        return None
    b = _BlockJob(job=element.job, largest=to_single(fmt.element.max))
    b.rule = _RULES.index(fmt.rule) if fmt.rule in _RULES else 0
    if b.rule == 0:
        _fill_powers(b, fmt)
    if fmt.scale_format is None:
        return _PreparedBlocks(b, element, None)
    adding = isinstance(fmt.scale_format, FloatFormat)
    scale = prepare(fmt.scale_format, "nearest-even", "saturate") if adding else None
    if scale is None or not scale.job.to_magic:
        return None
    b.scale_job = ctypes.addressof(scale.job)
    return _PreparedBlocks(b, element, scale)


def _fill_powers(b: _BlockJob, fmt: BlockFormat) -> None:
    fraction, inclusive = fmt.next_from
    past = (2 * fraction - 1) * 2**23  # as the bits after the leading one
    b.threshold = math.ceil(past) if inclusive else math.floor(past) + 1
    b.top = fmt.element_exponent
    is_code = fmt.rule != "power-of-two"  # then of E8M0
    b.lowest_power, b.highest_power = (-127, 127) if is_code else (-126, 126)
    b.power_of_zero = -127 if is_code else 0
