"""Block formats on tensors: shared scales, and elements rounded under them.

All on the device and exact: exponents come from the bits. Blocks lie along one axis (the
reduction axis of the product that wants them), or are square over the last two.
"""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor

from altcore.blocks import BlockFormat
from altcore.numerics.grids import check_floating, round_to_grid
from altcore.numerics.rounding import round_unscaled

SMALLEST, LARGEST = -127, 127
"""Exponents of an E8M0 scale."""


@frozen(eq=False)
class Blocks:
    """A tensor under a block format.

    ``values``: like the input, float32, each element times its block's scale (exact in float32).
    ``scale``: 0-dim, the tensor's own scale of a two-level format, None otherwise. The tensor
    that is meant is ``values * scale``. ``scales``: one a block.
    """

    values: Tensor
    scale: Tensor | None
    scales: Tensor


def round_blocks(
    x: Tensor,
    fmt: BlockFormat,
    *,
    axis: int = -1,
    rounding: str = "nearest-even",
    counts: Tensor | None = None,
    key: int | Tensor | None = None,
) -> Blocks:
    """Round ``x`` to a block format along ``axis``; ends that do not fill a block are padded.

    A block with a NaN or an infinity is NaN throughout. ``counts`` (see `COUNTS`) counts as
    overflow what is clipped to the element's largest value. Raises `BadInput` for an ``x`` that
    is not floating-point or has no such axis.
    """
    check_floating(x)
    folded, restore = _fold(x.detach().to(torch.float32), fmt, axis)
    largest = folded.abs().amax(-1, keepdim=True)
    tensor_scale = None
    if fmt.scale_format is None:
        r, s = _powers(largest, fmt)
    else:
        r, s, tensor_scale = _two_levels(largest, x, fmt)
    own = None if counts is None else torch.zeros_like(counts)
    # Padding is not the tensor's: it is counted, and then taken off again.
    q = round_to_grid(folded, fmt.element, rounding=rounding, r=r, counts=own, key=key)
    if counts is not None and own is not None:
        padding = folded.numel() - x.numel()
        own[0] -= padding
        counts += own
    return Blocks(restore(q * s), tensor_scale, s.squeeze(-1))


def _fold(x: Tensor, fmt: BlockFormat, axis: int) -> tuple[Tensor, Fold]:
    fold = Fold(tuple(x.shape), fmt, axis)
    return fold.fold(x), fold


class Fold:
    """Lays a tensor out as (blocks, elements of a block), and back."""

    def __init__(self, shape: tuple[int, ...], fmt: BlockFormat, axis: int) -> None:
        self.shape, self.block, self.axis, self.square = shape, fmt.block, axis, fmt.is_square

    def fold(self, x: Tensor) -> Tensor:
        """Return (blocks, elements), zero-padded at the ends."""
        b = self.block
        if self.square:
            rows, columns = x.shape[-2:]
            x = torch.nn.functional.pad(x, (0, -columns % b, 0, -rows % b))
            self.padded = x.shape
            x = x.reshape(-1, x.shape[-2] // b, b, x.shape[-1] // b, b)
            return x.transpose(2, 3).reshape(-1, b * b)
        x = x.movedim(self.axis, -1)
        x = torch.nn.functional.pad(x, (0, -x.shape[-1] % b))
        self.padded = x.shape
        return x.reshape(-1, b)

    def __call__(self, y: Tensor) -> Tensor:
        """Return what was folded, in the tensor's own shape."""
        b = self.block
        if self.square:
            rows, columns = self.padded[-2:]
            y = y.reshape(-1, rows // b, columns // b, b, b).transpose(2, 3)
            y = y.reshape(self.padded)
            return y[..., : self.shape[-2], : self.shape[-1]]
        y = y.reshape(self.padded)
        return y[..., : self.shape[self.axis]].movedim(-1, self.axis)


def _exponent(x: Tensor) -> Tensor:
    """``floor(log2 x)`` of positive finite float32, from the bits; int32."""
    return torch.frexp(x)[1] - 1


def _power(exponent: Tensor) -> Tensor:
    """``2^exponent`` as float32, exact down to the subnormals; exponents -149 to 127."""
    normal = (exponent.clamp(min=-126) + 127) << 23
    subnormal = torch.ones_like(exponent) << (exponent + 149).clamp(0, 22)
    return torch.where(exponent >= -126, normal, subnormal).view(torch.float32)


def _powers(largest: Tensor, fmt: BlockFormat) -> tuple[Tensor, Tensor]:
    """Return (1 / scale, scale) of MX blocks, by the format's rule."""
    top = fmt.element_exponent
    finite = torch.isfinite(largest)
    safe = torch.where(finite & (largest > 0), largest, 1.0)
    if fmt.rule == "even":
        precision = fmt.element.precision or fmt.element.bits
        safe = _round_to_bits(safe, precision)
    exponent = _exponent(safe)
    if fmt.rule == "ceil":
        exponent = exponent + (safe != _power(exponent)).to(exponent.dtype)
    elif fmt.rule == "rceil":
        # amax <= max * 2^k, compared in float64, where the product is exact.
        k = (exponent - top).clamp(SMALLEST, LARGEST)
        holds = safe.double() <= fmt.element.max * _power(k).double()
        exponent = exponent + (~holds).to(exponent.dtype)
    k = torch.where(largest > 0, exponent - top, SMALLEST).clamp(SMALLEST, LARGEST)
    k = k.to(torch.int32)
    nan = torch.where(finite, 0.0, torch.nan)
    return _power(-k) + nan, _power(k) + nan


def _round_to_bits(x: Tensor, precision: int) -> Tensor:
    """Round positive normal float32 to ``precision`` significant bits, ties to even."""
    cut = 24 - precision
    bits = x.view(torch.int32)
    up = ((bits >> cut) & 1) + (1 << (cut - 1)) - 1
    return ((bits + up) >> cut << cut).view(torch.float32)


def _two_levels(largest: Tensor, x: Tensor, fmt: BlockFormat) -> tuple[Tensor, Tensor, Tensor]:
    """Return (1 / (block scale · g), block scale, g) of a two-level format."""
    scale_format, element = fmt.scale_format, fmt.element
    assert scale_format is not None
    whole = largest.amax() if largest.numel() else largest.new_zeros(())
    g = whole / torch.full_like(whole, scale_format.max * element.max)
    wanted = largest / torch.full_like(largest, element.max) / g
    block, _ = round_unscaled(wanted, scale_format, "nearest-even", None)
    # 0/0 of a zero tensor, and block scales that round to 0: zeros.
    block = torch.where((g > 0) & (largest > 0), block, 0.0)
    total = block * g
    r = torch.where(total > 0, 1 / total, 0.0)
    nan = torch.where(torch.isfinite(whole), 0.0, torch.nan)
    return r + nan, block + nan, g
