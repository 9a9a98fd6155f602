"""A format and a rule as the kernels take them: ``struct job`` of rounding.h.

A job is made once for each format and rule; each call adds its tensors.
"""

from __future__ import annotations

import ctypes
import functools
import math
import struct
from collections.abc import Iterable

import torch
from attrs import frozen
from torch import Tensor

from altcore.formats import ROUNDINGS, FloatFormat, Format, to_single
from altcore.numerics.kernels.structs import Job
from altcore.numerics.rounding_constants import (
    TableConstants,
    float_constants,
    table_constants,
    thresholds,
)
from altcore.numerics.rules import Rule, half_bit, has_few_bits

_MOST_BUCKETS = 1 << 20  # for each sign; 4 bytes each: a posit of 16 bits takes 4 MB
_FEW = 16  # thresholds that a small table may have; FEW of rounding.h
_NEVER = 0x7FFFFFFF  # a threshold above every magnitude's bits


@frozen
class Prepared:
    """A job without its tensors, and what it points to, kept alive."""

    job: Job
    address: int  # of the job
    largest: float  # of the format
    buffers: tuple[Tensor, ...]


@functools.cache
def prepare_constants(fmt: Format, rule: Rule) -> Prepared | None:
    """Return the job of a format that computes in float32; None if the kernels cannot do it."""
    job = Job()
    job.rounding = ROUNDINGS.index(rule.rounding)
    job.random_bits, job.half = rule.stochastic.random_bits, half_bit(rule.stochastic)
    job.has_few_bits = has_few_bits(rule)
    job.saturates = rule.overflow == "saturate"
    given = {"saturate": fmt.max, "inf": math.inf, "nan": math.nan}[rule.overflow]
    job.over_bits = _bits(given)
    if isinstance(fmt, FloatFormat):  # whose values are many
        job.smallest, job.lowest, job.highest = fmt.smallest, -fmt.max, fmt.max
    else:
        job.smallest = min(abs(v) for v in fmt.values if v)
        job.lowest, job.highest = fmt.values[0], fmt.values[-1]
    buffers: tuple[Tensor, ...] = ()
    if not isinstance(fmt, FloatFormat) or rule.rounding == "log-nearest":
        buffers = _fill_table(job, fmt, rule.rounding)
    elif not _fill_float(job, fmt):
        return None
    return Prepared(job, ctypes.addressof(job), to_single(fmt.max), buffers)


def _fill_float(job: Job, fmt: FloatFormat) -> bool:
    """Fill in a float format's part of the job; returns whether float32 has room for it."""
    c = float_constants(fmt, torch.float32)
    if c.sub_quantum + 23 > 127:
        return False  # the constant whose addition rounds subnormals would overflow
    job.min_normal, job.cut, job.flip, job.max = c.min_normal, c.cut, c.flip, c.max
    job.to_magic, job.top = c.to_magic, c.top
    job.magic = 2.0 ** (c.sub_quantum + 23)
    job.gapped = not fmt.subnormals
    job.unit = 2.0**c.sub_quantum
    return True


def _fill_table(job: Job, fmt: Format, rounding: str) -> tuple[Tensor, ...]:
    """Fill in a table's part of the job; returns the memory it points to."""
    c = table_constants(fmt, torch.float32)
    drawing = rounding == "stochastic"
    points = c.starts if drawing else thresholds(fmt, rounding, torch.float32)
    if drawing:
        payloads = torch.arange(len(points) + 1, dtype=torch.int32, device="cpu")
    else:
        values = (c.values[0], *c.values, c.values[-1])
        payloads = _singles(values).view(torch.int32)
    bounds = _singles(points)
    few, entries = _few(bounds, payloads), _bucketed(job, points)
    magics = bounds[:0] if drawing or len(few) else _magics(bounds, payloads.view(torch.float32))
    ends = _ends(job, c) if drawing else bounds[:0]
    job.is_table, job.bottom, job.top = True, points[0], points[-1]
    job.threshold_count = len(points)
    job.thresholds, job.payloads = bounds.data_ptr(), payloads.data_ptr()
    job.few = few.data_ptr() if len(few) else None
    job.magics = magics.data_ptr() if len(magics) else None
    job.entries, job.ends = entries.data_ptr(), ends.data_ptr()
    return bounds, payloads, few, magics, entries, ends


def _ends(job: Job, c: TableConstants) -> Tensor:
    """``struct ends`` of each gap, those past the table's ends included."""
    count, grid = len(c.values), c.grid

    def end(index: int) -> tuple[int, int]:
        """Payload and overflow of a position in the extended grid."""
        value = c.values[min(max(index - 1, 0), count - 1)]
        return _signed_bits(value), int(index in (0, count + 1))

    def pack(inner: int, outer: int, width: float) -> bytes:
        (near, near_over), (far, far_over) = end(inner), end(outer)
        return struct.pack("<ddIIII", grid[inner], width, near, far, near_over, far_over)

    packed = [pack(0, 0, math.inf)]
    job.centre = job.mirrored = _NEVER
    for i in range(count + 1):
        low, high = grid[i], grid[i + 1]
        inner, outer = (i + 1, i) if abs(high) < abs(low) else (i, i + 1)
        packed.append(pack(inner, outer, high - low))
        if high == -low:
            job.centre, job.mirrored = i + 1, count + 3
    packed.append(pack(count + 1, count + 1, math.inf))
    if job.centre != _NEVER:
        i = job.centre - 1
        packed.append(pack(i + 1, i, grid[i + 1] - grid[i]))
    raw = bytearray(b"".join(packed))
    return torch.frombuffer(raw, dtype=torch.uint8).clone()  # which C finds aligned


def _few(bounds: Tensor, payloads: Tensor) -> Tensor:
    """``struct few``; empty if more thresholds than it holds change the payload."""
    changes = payloads[:-1] ^ payloads[1:]
    at = changes.nonzero().flatten()
    if len(at) > _FEW:
        return bounds[:0]
    result = torch.zeros(2 * _FEW + 1, dtype=torch.int32, device="cpu")
    result[: len(at)] = bounds[at].view(torch.int32)
    result[_FEW : _FEW + len(at)] = changes[at]
    result[2 * _FEW] = payloads[0]
    return result


def _magics(bounds: Tensor, values: Tensor) -> Tensor:
    """The number whose addition rounds a binade, for each exponent of a float32; 0 for none.

    ``values``: one for each gap between ``bounds``. In a binade that is evenly spaced there are
    ``2**bits`` bounds; below the lowest such one, as below 1 in integers, its spacing may go on
    down to zero. Empty where most of the format's own binades are not so, or zero is not 0.
    """
    magics = torch.zeros(256, dtype=torch.float32, device="cpu")
    if float(values[torch.bucketize(_singles([0.0]), bounds, right=True)]) != 0:
        return magics[:0]
    sizes = values.abs()
    lowest, highest = (math.frexp(float(v))[1] - 1 for v in (sizes[sizes > 0].min(), sizes.max()))
    for exponent in range(max(lowest, -126), highest):
        low = 2.0**exponent
        steps = int(torch.sum((bounds > low) & (bounds < 2 * low)))
        bits = steps.bit_length() - 1
        if 0 <= bits <= 22 and steps == 1 << bits and exponent + 23 - bits <= 127:
            places = torch.arange(steps, dtype=torch.float32, device="cpu") + 0.5
            middles = low + places * (low / steps)
            magic = 2.0 ** (exponent + 23 - bits)
            if _adds(magic, low, 2 * low, middles, bounds, values):
                magics[exponent + 127] = magic
    even = magics.nonzero().flatten()
    if 2 * len(even) <= highest - lowest:
        return magics[:0]
    first = int(even[0])
    for field in range(first):
        low = 2.0 ** (field - 127) if field else 2.0**-149
        magic, high = float(magics[first]), 2.0 ** (max(field, 1) - 126)
        if _adds(magic, low, high, _singles([low]), bounds, values):
            magics[field] = magic
    return magics


def _adds(
    magic: float, low: float, high: float, middles: Tensor, bounds: Tensor, values: Tensor
) -> bool:
    """Whether adding ``magic`` rounds as the table does, from ``low`` to below ``high``.

    Both go up in steps, the former at ``middles``, so that it is enough to compare them on both
    sides of those and at the ends.
    """
    down, up = _singles([-math.inf]), _singles([math.inf])
    sides = [torch.nextafter(middles, end) for end in (down, up)]
    last = torch.nextafter(_singles([high]), down)
    points = torch.cat([_singles([low]), middles, *sides, last]).clamp(low, float(last))
    sums = (points + magic) - magic
    return all(
        torch.equal(values[torch.bucketize(sign * points, bounds, right=True)], sign * sums)
        for sign in (1.0, -1.0)
    )


def _bucketed(job: Job, points: tuple[float, ...]) -> Tensor:
    """Buckets of magnitudes that hold at most one threshold each, for either sign.

    A magnitude's bits sort like the magnitude; their top ones, from the lowest threshold on,
    number the buckets. For negative numbers a number not below a threshold -t is a magnitude
    not above t. An entry has the gap below its threshold in its top bits, and in the lowest
    ``bucket_shift + 1`` where in the bucket that lies, or the bucket's end. Leaves
    ``job.buckets`` at 0 if the thresholds lie too close.
    """
    positive = [_bits(t) for t in points if t > 0]
    negative = sorted(_bits(-t) + 1 for t in points if t <= 0)
    at_zero = len(negative)
    low, high = min(positive + negative) - 1, max(positive + negative)
    shift = min(23, 31 - len(points).bit_length())
    while shift > 0 and not all(_apart(half, low, shift) for half in (positive, negative)):
        shift -= 1
    buckets = ((high - low) >> shift) + 1
    if buckets > _MOST_BUCKETS or not all(_apart(h, low, shift) for h in (positive, negative)):
        return torch.zeros(0, dtype=torch.int32, device="cpu")
    starts = low + (torch.arange(buckets, dtype=torch.int64, device="cpu") << shift)
    rows = []
    for half, step in ((positive, 1), (negative, -1)):
        bounds = torch.tensor([*half, _NEVER], dtype=torch.int64, device="cpu")
        passed = torch.bucketize(starts, bounds[: len(half)])
        depth = (bounds[passed] - starts).clamp(max=1 << shift)
        rows.append(((at_zero + step * passed) << (shift + 1)) | depth)
    job.bucket_low, job.bucket_high, job.bucket_shift = low, high, shift
    job.buckets = buckets
    entries = torch.cat(rows)
    return torch.where(entries < 1 << 31, entries, entries - (1 << 32)).to(torch.int32)


def _apart(bounds: list[int], low: int, shift: int) -> bool:
    numbers = [(b - low) >> shift for b in bounds]
    return len(set(numbers)) == len(numbers)


def _singles(values: Iterable[float]) -> Tensor:
    """float32s on the CPU, whatever torch makes by default."""
    return torch.tensor(list(values), dtype=torch.float32, device="cpu")


def _bits(value: float) -> int:
    """The bits of a float32's magnitude."""
    return _signed_bits(abs(value))


def _signed_bits(value: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", value))[0])
