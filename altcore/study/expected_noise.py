"""The error that a format makes on a distribution, by integrals over its rounding intervals.

An interval that rounds to ``v`` adds ``v² m0 - 2 v m1 + m2`` to the mean square error, where the
``m`` are the moments of the numbers in it. In blocks the scale depends on the block's largest
magnitude. Between two points the scale is constant, and a number of the block counts with the
probability that the others lie below, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import torch
from attrs import frozen
from torch import Tensor

from altcore.formats import BlockFormat, Format, TableFormat
from altcore.numerics import compute_dtype
from altcore.study.distributions import FAR, Distribution, Tails

_RESOLVED = (1e-6, 1e5)
"""Intervals outside these, times the root mean square, are not told apart: all that they could add
is 1e-12 of the signal."""
_NEVER = 1e-15  # a probability
_BINS = 32  # of a binade, where any number may be a scale


class Loss(NamedTuple):
    """Mean square error, and shares of numbers: past the largest value, and rounded to zero."""

    noise: float
    overflow: float
    underflow: float


@frozen(eq=False)
class _Side:
    """A format's intervals for the magnitudes of one sign, at a scale of 1; float64.

    ``values``: where each interval goes, those of the other sign negative; ``edges``: where the
    intervals begin, the first at 0; ``limit``: where overflow begins.
    """

    values: Tensor
    edges: Tensor
    limit: float


@cache
def _sides(fmt: Format) -> tuple[_Side, _Side]:
    values = torch.tensor(fmt.values, dtype=torch.float64, device="cpu")
    has_own = isinstance(fmt, TableFormat) and fmt.rules.boundaries is not None
    between = (values[:-1] + values[1:]) / 2  # exact; fractions take long for 16 bits
    if has_own:
        between = torch.tensor([float(b) for b in fmt.boundaries], dtype=torch.float64)
    low, high = (float(limit) for limit in fmt.limits)
    return _side(values, between, high), _side(-values.flip(0), -between.flip(0), -low)


def _side(values: Tensor, between: Tensor, limit: float) -> _Side:
    below = int((between <= 0).sum())
    zero = torch.zeros(1, dtype=torch.float64, device="cpu")
    return _Side(values[below:], torch.cat([zero, between[below:]]), max(limit, 0.0))


def expected(fmt: Format, data: Distribution, scale: float, largest: float = FAR) -> Loss:
    """Return the loss of rounding ``data`` to nearest at ``scale``.

    Counts only numbers with a magnitude up to ``largest``.
    """
    noise, overflow, underflow = 0.0, 0.0, 0.0
    for side, tails in zip(_sides(fmt), (data.positive, data.negative), strict=True):
        noise += _noise(side, tails, scale, data.signal, largest)
        zero = scale * float(side.edges[1]) if len(side.edges) > 1 else FAR
        points = [0.0, zero if side.values[0] == 0 else 0.0, scale * side.limit, largest]
        if scale == 0:  # of blocks whose scale is too small for its format
            points[1:3] = largest, largest
        beyond = tails(_points(points).clamp(max=largest))[0]
        underflow += float(beyond[0] - beyond[1])
        overflow += float(beyond[2] - beyond[3])
    return Loss(noise, overflow, underflow)


def _noise(side: _Side, tails: Tails, scale: float, signal: float, largest: float = FAR) -> float:
    """Return the mean square error of one sign's numbers up to ``largest``."""
    unit = math.sqrt(signal) / scale if scale else math.inf
    ends = _points([_RESOLVED[0] * unit, _RESOLVED[1] * unit])
    first, last = torch.searchsorted(side.edges, ends).tolist()
    kept = slice(max(first - 1, 0), max(last, 1))
    edges = torch.cat([side.edges[kept] * scale, _points([FAR])]).clamp_(max=largest)
    values = side.values[kept] * scale
    m0, m1, m2 = -tails(edges).diff()
    return max(float(values.square() @ m0 - 2 * (values @ m1) + m2.sum()), 0.0)


def _points(at: list[float]) -> Tensor:
    return torch.tensor(at, dtype=torch.float64, device="cpu")


def best_scale(fmt: Format, data: Distribution) -> float:
    """Return the scale with the least mean square error, with a relative error below 1e-4.

    The scale and its inverse are normal numbers of the compute dtype. The error has many minima.
    The search tries each binade in which numbers neither all overflow nor all become 0, then ever
    closer around the best points.
    """
    sides = [*zip(_sides(fmt), (data.positive, data.negative), strict=True)]
    signal = data.signal
    # Where both signs see the same, one is enough.
    mirrored = data.positive is data.negative and torch.equal(sides[0][0].edges, sides[1][0].edges)
    if mirrored and torch.equal(sides[0][0].values, sides[1][0].values):
        sides = sides[:1]

    @cache
    def noise(scale: float) -> float:
        return sum(_noise(side, tails, scale, signal) for side, tails in sides)

    if signal == 0:
        return 1.0
    magnitudes = [abs(v) for v in fmt.values if v]
    limit = 126 if compute_dtype(torch.float32, fmt) == torch.float32 else 1000
    low = max(math.log2(data.moments[1] / 4) - math.log2(max(magnitudes)), -limit)
    high = min(math.log2(data.amax) - math.log2(min(magnitudes)), limit)
    width = 0.25
    steps = max(math.ceil((high - low) / width), 0)
    scales = [2.0 ** (low + width * i) for i in range(steps + 1)]
    for most in (64, 32, 4):
        near = 10 * min(map(noise, scales))  # 10 dB: more than a finer search should gain
        best = [s for s in sorted(scales, key=noise)[:most] if noise(s) <= near]
        width /= 16
        scales = [s * 2 ** (width * i) for s in best for i in range(-8, 9)]
    return min(scales, key=noise)


def expected_in_blocks(fmt: BlockFormat, data: Distribution) -> Loss:
    """Return the loss of ``fmt`` on independent numbers, in a tensor whose amax is ``data``'s."""
    others = fmt.block ** (2 if fmt.is_square else 1) - 1
    parts = _by_amax(fmt, data, others) if fmt.rule == "amax" else _by_scale(fmt, data, others)
    total = [0.0, 0.0, 0.0]
    for weight, lost in parts:
        total = [t + weight * part for t, part in zip(total, lost, strict=True)]
    return Loss(*(max(part, 0.0) for part in total))


def _by_scale(fmt: BlockFormat, data: Distribution, others: int) -> Iterator[tuple[float, Loss]]:
    """Yield the losses under each scale, of numbers up to both ends of the range that has it."""
    for scale, start, end in _block_scales(fmt, data):
        if data.within(end) ** others < _NEVER:
            continue
        for sign, largest in ((1, end), (-1, start)):
            weight = sign * data.within(largest) ** others
            yield weight, expected(fmt.element, data, scale, largest)


def _block_scales(fmt: BlockFormat, data: Distribution) -> Iterator[tuple[float, float, float]]:
    """Yield each scale with the two points between which a block's largest magnitude has it."""
    if fmt.scale_format is not None:
        tensor, side = data.amax / fmt.largest, _sides(fmt.scale_format)[0]
        edges = [float(e) * tensor * fmt.element.max for e in side.edges] + [FAR]
        for value, start, end in zip(side.values, edges[:-1], edges[1:], strict=True):
            yield float(value) * tensor, start, end
        return
    for start, end in _bins(data, fmt.next_from[0], 1):
        yield start / fmt.next_from[0] / 2.0**fmt.element_exponent, start, end


def _by_amax(fmt: BlockFormat, data: Distribution, others: int) -> Iterator[tuple[float, Loss]]:
    """Yield the losses of the others of a block; its largest number is exact."""
    for start, end in _bins(data, 1.0, _BINS):
        weight = data.within(end) ** (others + 1) - data.within(start) ** (others + 1)
        if weight > _NEVER:
            middle = math.sqrt(start * end)
            lost = expected(fmt.element, data, middle / fmt.element.max, middle)
            yield weight * others / (others + 1) / data.within(middle), lost


def _bins(data: Distribution, first: float, count: int) -> Iterator[tuple[float, float]]:
    """Yield ``count`` parts of each binade, which begins at ``first``, where numbers may lie."""
    low, high = (math.log2(end * math.sqrt(data.signal)) for end in _RESOLVED)
    for i in range(math.floor(count * low), math.ceil(count * high)):
        yield first * 2.0 ** (i / count), first * 2.0 ** ((i + 1) / count)
