"""Rounding in torch operations: on every device, under every tracer, and for every format.

The arithmetic, on every path: the scaled value is ``x * r`` rounded to the compute dtype (no
division, no fused multiply-add), that is rounded to the grid, and a rounding there and back
multiplies the grid value by ``s`` and rounds once, to ``x``'s dtype. Blocks have one ``s`` and one
``r`` each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import define
from torch import Tensor

from altcore.errors import BadInput
from altcore.formats import BlockFormat, Format, float_format
from altcore.numerics.block_scales import (
    RoundedBlocks,
    largest_of_blocks,
    scales_of_blocks,
    spread,
)
from altcore.numerics.checks import check_floating, check_meters
from altcore.numerics.hashing import check_key, random_bits
from altcore.numerics.rounding_constants import compute_dtype
from altcore.numerics.rules import NEAREST, Meters, Rule, draws
from altcore.numerics.scaling import scale_of
from altcore.numerics.torch_rounding import round_unscaled

Key = int | Tensor | None
Measured = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]
"""The result, a mask of overflows, and the increments of counts and of errors."""
_HALVES = {
    torch.float16: float_format("float16", 5, 10, specials="ieee"),
    torch.bfloat16: float_format("bfloat16", 8, 7, specials="ieee"),
}
PART = 4096
"""Elements that one processor sums in compiled code."""


@define(eq=False, slots=False)  # torch.compile traces the making of such an object
class TorchRounder:
    """Rounds to one format by one rule, which `altcore.numerics.checks.check_rule` has passed."""

    fmt: Format
    rule: Rule

    def round(
        self,
        x: Tensor,
        r: Tensor | None,
        meters: Meters,
        key: Key,
        dtype: torch.dtype | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """`altcore.numerics.round_to_grid`; ``weight`` multiplies what `ERRORS` squares."""
        return self._measured(x, r, None, meters, key, dtype, weight, fake=False)

    def fake(
        self, x: Tensor, r: Tensor | None, s: Tensor | None, meters: Meters, key: Key
    ) -> Tensor:
        """`altcore.numerics.fake_round`."""
        return self._measured(x, r, s, meters, key, x.dtype, None, fake=True)

    def round_by_amax(
        self,
        x: Tensor,
        power_of_two: bool,
        margin: float,
        meets: float | None,
        meters: Meters,
        key: Key,
        *,
        fake: bool,
        dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`altcore.numerics.round_scaled`."""
        s, r = scale_of(amax(x), self.fmt, power_of_two=power_of_two, margin=margin, meets=meets)
        if fake:
            return self.fake(x, r, s, meters, key), s, r
        return self.round(x, r, meters, key, dtype), s, r

    def compute(
        self,
        x: Tensor,
        r: Tensor | None,
        s: Tensor | None,
        key: Key,
        dtype: torch.dtype | None,
        weight: Tensor | None,
        *,
        fake: bool,
        counts: bool,
        errors: bool,
    ) -> Measured:
        """Round and measure, without a side effect or a transfer."""
        return rounded(self.fmt, self.rule, x, r, s, key, dtype, weight, fake, counts, errors)

    def _measured(
        self,
        x: Tensor,
        r: Tensor | None,
        s: Tensor | None,
        meters: Meters,
        key: Key,
        dtype: torch.dtype | None,
        weight: Tensor | None,
        *,
        fake: bool,
    ) -> Tensor:
        if key is not None:
            check_key(key)
        elif draws(self.rule):
            raise BadInput("stochastic rounding needs a key")
        check_meters(x, meters)
        asked = {"counts": meters.counts is not None, "errors": meters.errors is not None}
        x = x.detach()
        q, over, counts, errors = self.compute(x, r, s, key, dtype, weight, fake=fake, **asked)
        if meters.counts is not None and counts is not None:
            meters.counts.add_(counts)
        if meters.errors is not None and errors is not None:
            meters.errors.add_(errors)
        if over is not None and bool(over.any()):
            raise BadInput(f"{int(over.sum())} value(s) overflow format {self.fmt.name}")
        return q


def rounded(
    fmt: Format,
    rule: Rule,
    x: Tensor,
    r: Tensor | None,
    s: Tensor | None,
    key: Key,
    dtype: torch.dtype | None,
    weight: Tensor | None,
    fake: bool,
    counts: bool,
    errors: bool,
) -> Measured:
    """Round ``x`` by the arithmetic above: a function of tensors, for torch.compile to take whole.

    ``fake``: multiply by ``s``. ``dtype`` is that of the result; None for the compute dtype.
    """
    y = x.to(compute_dtype(x.dtype, fmt))
    if r is not None:
        y = y * r.to(y.dtype)
    noise = None
    if draws(rule):
        assert key is not None
        noise = random_bits(x.shape, key, x.device)
    q, over = round_unscaled(y, fmt, rule, noise)
    found = _count(x, q, over) if counts else None
    sums = _square(y, q, weight) if errors else None
    if rule.overflow == "inf":
        # The saturated value lies between y and the rest of the grid, whatever its sign is.
        infinity = torch.full_like(q, torch.inf)
        q = torch.where(over, torch.where(y < q, -infinity, infinity), q)
    elif rule.overflow == "nan":
        q = torch.where(over, torch.nan, q)
    q = times_scale(q, s, x.dtype if fake else dtype or q.dtype)
    return q, over if rule.overflow == "raise" else None, found, sums


@define(eq=False)
class TorchBlockRounder:
    """Rounds to one block format: scales of the blocks, and `element` for the elements."""

    fmt: BlockFormat
    element: TorchRounder

    def round(self, x: Tensor, axis: int, meters: Meters, key: Key) -> RoundedBlocks:
        """`altcore.numerics.round_blocks`."""
        q, each, scale, scales, inverse = self._parts(x, axis, meters, key)
        return RoundedBlocks(q * each, scale, scales, inverse)

    def fake(self, x: Tensor, axis: int, meters: Meters, key: Key) -> Tensor:
        """`altcore.numerics.fake_blocks`."""
        q, each, scale, _, _ = self._parts(x, axis, meters, key)
        if scale is None:
            return times_scale(q, each, x.dtype)
        return times_scale(q * each, scale, x.dtype)

    def _parts(
        self, x: Tensor, axis: int, meters: Meters, key: Key
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
        """The grid values, the scale of each, and the rest of `RoundedBlocks`."""
        fmt, x = self.fmt, x.detach()
        dtype = compute_dtype(x.dtype, fmt)
        largest = largest_of_blocks(x, fmt, axis)
        scales, inverse, scale = scales_of_blocks(largest, fmt, dtype)
        shape = tuple(x.shape)
        r, each = spread(inverse, shape, fmt, axis), spread(scales, shape, fmt, axis)
        q = self.element.round(x.to(dtype), r, meters, key, weight=each)
        return q, each, scale, scales, inverse


def amax(x: Tensor, axis: int | Sequence[int] | None = None) -> Tensor:
    """`altcore.numerics.amax`."""
    check_floating(x)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    x = x.detach()
    if axis is not None:
        return _amax_along(x, axis).to(dtype)
    if x.numel() == 0:
        return torch.zeros((), dtype=dtype, device=x.device)
    low, high = torch.aminmax(x)
    return torch.maximum(-low, high).to(dtype).abs()  # abs: for all zeros, -0 is 0


def _amax_along(x: Tensor, axis: int | Sequence[int]) -> Tensor:
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    if x.numel() == 0:
        lost = {a % x.ndim for a in axes}
        return x.new_zeros([1 if i in lost else n for i, n in enumerate(x.shape)])
    return torch.maximum(x.amax(axes, keepdim=True), -x.amin(axes, keepdim=True)).abs()


def times_scale(q: Tensor, s: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return ``q * s`` rounded once to ``dtype``; ``s`` None means 1."""
    s = None if s is None else s.to(q.dtype)
    if dtype == q.dtype:
        return q if s is None else q * s
    if s is None and q.dtype == torch.float32:
        return _narrowed(q, dtype)
    # A product of two float32s is exact in float64, and rounded to odd in float32 it keeps
    # what decides the second rounding, to 16 bits.
    product = q.double() if s is None else q.double() * s.double()
    single = product.to(torch.float32)
    if dtype == torch.float32:
        return single
    bits = single.view(torch.int32)
    magnitude = single.double().abs()
    inexact = magnitude != product.abs()
    bits = torch.where(magnitude > product.abs(), bits - 1, bits)
    bits = torch.where(inexact & torch.isfinite(product), bits | 1, bits)
    return _narrowed(bits.view(torch.float32), dtype)


def _narrowed(single: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float32 numbers to ``dtype``."""
    if torch.compiler.is_compiling() and dtype in _HALVES:
        # Else torch.compile leaves the cast out of what it computes from the result in float32.
        value, over = round_unscaled(single, _HALVES[dtype], NEAREST, None)
        single = torch.where(over, torch.copysign(torch.full_like(value, torch.inf), value), value)
    return single.to(dtype)


def _count(x: Tensor, q: Tensor, over: Tensor) -> Tensor:
    finite = torch.isfinite(x)
    elements = torch.full((1,), x.numel(), dtype=torch.int64, device=x.device)
    flushed = (q == 0) & (x != 0) & finite & ~over
    return torch.cat([elements, _totals(over & finite, flushed, ~finite)])


def _square(y: Tensor, q: Tensor, weight: Tensor | None) -> Tensor:
    finite = torch.isfinite(y)
    error, signal = q.double() - y.double(), y.double()
    if weight is not None:
        error, signal = error * weight.double(), signal * weight.double()
    return _totals(*(torch.where(finite, t, 0.0).square() for t in (error, signal)))


def _totals(*tensors: Tensor) -> Tensor:
    """Return the sum of each tensor; in compiled code, of the sums of parts of one size.

    torch.compile shares out a sum among a GPU's processors by the size of the first tensor that it
    sees, and keeps that for larger ones: after a small one it would leave them all to one.
    """
    if not torch.compiler.is_compiling():
        return torch.stack([t.sum() for t in tensors])
    flat = [t.reshape(-1) for t in tensors]
    # Two parts at least: torch compiles anew for a single one.
    padded = [torch.nn.functional.pad(t, (0, 2 * PART - t.numel() % PART)) for t in flat]
    return torch.stack([t.view(-1, PART).sum(1) for t in padded]).sum(1)
