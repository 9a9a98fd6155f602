"""A linear layer's three products on quantized operands.

Products run on unscaled grid values and the scales multiply the output, so that a scale need not
be a power of two. All quantization of ``x`` and ``w`` happens in the forward pass, from the
unquantized tensors; the backward pass quantizes the output's gradient.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from altcore.formats import FloatFormat, Format
from altcore.surgery.quantizer import Operand

FLOAT32_ROOM = 2.0**120
"""Largest max² · K of a product that still leaves room for its sum in float32."""


class LinearCasts(Protocol):
    """What the product asks of a layer: its operands, by name."""

    bfloat16: bool

    def pair(
        self, role: str, x: Tensor, training: bool, wanted: tuple[bool, bool] = (True, True)
    ) -> tuple[Operand | None, Operand | None]: ...
    def count_product(self, a: Operand, b: Operand, flops: int) -> None: ...


class QuantizedLinear(torch.autograd.Function):
    """``x @ w.T + bias`` with each of the six operands quantized as the layer says.

    x: (..., in), w: (out, in), bias: (out) or None. The gradient of the bias is the plain sum of
    the unquantized output gradient: it is no product.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, casts: LinearCasts, training: bool
    ) -> Tensor:
        ctx.casts, ctx.shape, ctx.training = casts, x.shape, training
        ctx.dtypes = (x.dtype, w.dtype, bias.dtype if bias is not None else None)
        flat = x.reshape(-1, x.shape[-1])
        needs_x, needs_w = ctx.needs_input_grad[:2]
        a, ctx.x_wgrad = casts.pair("activation", flat, training, (True, needs_w))
        b, ctx.w_dgrad = casts.pair("weight", w, training, (True, needs_x))
        assert a is not None
        assert b is not None
        ctx.flops = 2 * flat.shape[0] * w.numel()
        casts.count_product(a, b, ctx.flops)
        y = product(a, b, transpose_b=True, bfloat16=casts.bfloat16)
        if bias is not None:
            y = y + bias.to(y.dtype)
        out = torch.bfloat16 if casts.bfloat16 else x.dtype
        return y.to(out).reshape(*x.shape[:-1], w.shape[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        casts = ctx.casts
        dy = grads[0].reshape(-1, grads[0].shape[-1])
        wanted = ctx.needs_input_grad[:2]
        g_dgrad, g_wgrad = casts.pair("gradient", dy, ctx.training, wanted)
        dx = dw = db = None
        if wanted[0]:
            casts.count_product(g_dgrad, ctx.w_dgrad, ctx.flops)
            dx = product(g_dgrad, ctx.w_dgrad, bfloat16=casts.bfloat16)
            dx = dx.to(ctx.dtypes[0]).reshape(ctx.shape)
        if wanted[1]:
            casts.count_product(g_wgrad, ctx.x_wgrad, ctx.flops)
            dw = product(g_wgrad, ctx.x_wgrad, transpose_a=True, bfloat16=casts.bfloat16)
            dw = dw.to(ctx.dtypes[1])
        if ctx.needs_input_grad[2]:
            db = dy.sum(0, dtype=torch.float32).to(ctx.dtypes[2])
        return dx, dw, db, None, None


class StraightThrough(torch.autograd.Function):
    """A quantized weight whose gradient is that of the weight."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, quantized: Tensor) -> Tensor:
        return quantized.view_as(quantized)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0], None


def product(
    a: Operand,
    b: Operand,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    bfloat16: bool = False,
) -> Tensor:
    """Multiply two operands: (m, k) by (k, n) after the transposes; scales on the output.

    float32, or with ``bfloat16`` a bfloat16 product where both operands are exact in bfloat16
    (or not quantized, as under autocast). The result is float32 (bfloat16 products are rounded
    to bfloat16 once before their scale).
    """
    av = a.values.t() if transpose_a else a.values
    bv = b.values.t() if transpose_b else b.values
    shift = _shift(a, b, av.shape[-1])
    av, bv = _shifted(av, shift[0]), _shifted(bv, shift[1])
    narrow = bfloat16 and _exact_in_bfloat16(a.format) and _exact_in_bfloat16(b.format)
    wide = torch.float64 if torch.float64 in (av.dtype, bv.dtype) else torch.float32
    dtype = torch.bfloat16 if narrow else wide
    # Autocast would round the operands of a float32 product behind the recipe's back.
    with torch.autocast(av.device.type, enabled=False):
        y = (av.to(dtype) @ bv.to(dtype)).to(wide)
    for scale, exponent in ((a.scale, shift[0]), (b.scale, shift[1])):
        if scale is not None:
            y = y * (scale * 2.0**exponent)
    return y


def _shifted(values: Tensor, exponent: int) -> Tensor:
    return values * 2.0**-exponent if exponent else values


def _shift(a: Operand, b: Operand, k: int) -> tuple[int, int]:
    """Return the powers of two that bring the largest values near 1, where float32 needs it.

    An operand without a scale holds the tensor's own values, and is left alone.
    """
    largest = [_largest(a), _largest(b)]
    if math.prod(largest) * k <= FLOAT32_ROOM:
        return 0, 0
    exponents = [math.frexp(v)[1] - 1 if v > 1 else 0 for v in largest]
    return exponents[0], exponents[1]


def _largest(operand: Operand) -> float:
    """What a scale made the operand's values as large as; 1 where they are what they were."""
    scaled = operand.scale is not None and operand.format is not None
    return operand.format.max if scaled and operand.format else 1.0


def _exact_in_bfloat16(fmt: Format | None) -> bool:
    """Whether every value of the format is a normal bfloat16; True for an unquantized operand."""
    if fmt is None:
        return True
    if not isinstance(fmt, FloatFormat):
        return all(_is_bfloat16(v) for v in fmt.values)
    return fmt.precision <= 8 and fmt.smallest >= 2.0**-126 and fmt.max <= 2.0**127


def _is_bfloat16(value: float) -> bool:
    mantissa, exponent = math.frexp(value)
    return value == 0 or (float(mantissa * 256).is_integer() and -125 <= exponent <= 128)
