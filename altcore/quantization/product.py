"""The product of two quantized operands, and the tensors that a backward pass needs.

Products run on unscaled grid values and the scales multiply the output, so that a scale need not
be a power of two. Only the scales of blocks, which a sum runs over, are in the values.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from altcore.formats import FloatFormat, Format
from altcore.numerics import outside_modes, scale_output
from altcore.quantization.compute import float8_dtypes, is_exact_in_bfloat16
from altcore.quantization.flops import uncounted
from altcore.quantization.quantizer import Operand

FLOAT32_ROOM = 2.0**120
"""Largest max² · K of a product that still leaves room for its sum in float32."""


PAIRS = {
    "activation": ("activation@fwd", "activation@wgrad"),
    "weight": ("weight@fwd", "weight@dgrad"),
    "gradient": ("gradient@dgrad", "gradient@wgrad"),
}
"""A role's operands in a layer's products."""

with outside_modes():
    QUANTIZED = torch.zeros((), dtype=torch.uint8, device="cpu")
"""Saved for the backward pass by everything that quantizes, and by nothing else. A checkpoint
within a module's own forward makes plain products when it recomputes them, and so sees that they
differ."""


def save_operands(
    ctx: Any, a: Operand, b: Operand, x_wgrad: Operand | None, w_dgrad: Operand | None
) -> None:
    """Save the operands of the backward pass, and the masks of ``a`` and ``b``'s clipping.

    Autograd holds it: that frees it after the backward pass, notices a tensor that changed in
    between, and lets checkpointing and offloading have it. `QUANTIZED` comes last.
    """
    needs_x, needs_w = ctx.needs_input_grad[:2]
    saved = (x_wgrad if needs_w else None, w_dgrad if needs_x else None)
    ctx.formats = [None if o is None else o.format for o in saved]
    tensors = [t for o in saved for t in ((o.values, o.scale) if o else (None, None))]
    clipped = (a.clipped if needs_x else None, b.clipped if needs_w else None)
    ctx.save_for_backward(*tensors, *clipped, QUANTIZED)


def saved_operands(ctx: Any) -> tuple[Any, Any, Tensor | None, Tensor | None]:
    """Return x and w as `save_operands` saved them, if they are needed, and their masks."""
    x, x_scale, w, w_scale, x_clipped, w_clipped, _ = ctx.saved_tensors
    return (
        None if x is None else Operand(x, x_scale, ctx.formats[0]),
        None if w is None else Operand(w, w_scale, ctx.formats[1]),
        x_clipped,
        w_clipped,
    )


class StraightThrough(torch.autograd.Function):
    """A quantized tensor whose gradient passes to the tensor, but where it is ``clipped``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, quantized: Tensor, clipped: Tensor | None) -> Tensor:
        ctx.clipped = clipped
        ctx.save_for_backward(QUANTIZED)
        return quantized.view_as(quantized)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors  # so that a checkpoint compares them
        return clip(grads[0], ctx.clipped), None, None


def clip(gradient: Tensor, clipped: Tensor | None) -> Tensor:
    """The gradient of a clipped straight-through estimator: zero outside the format's range."""
    return gradient if clipped is None else gradient.masked_fill(clipped, 0)


def bias_gradient(dy: Tensor, axes: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return the plain sum of the unquantized gradient, in float32 at least, as ``dtype``."""
    return dy.sum(axes, dtype=torch.promote_types(dy.dtype, torch.float32)).to(dtype)


def product(
    a: Operand,
    b: Operand,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    compute: str = "float32",
    bias: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Multiply two operands: (m, k) by (k, n) after the transposes; scales on the output.

    Or a batch of such products. ``compute`` says in which type (see
    `altcore.quantization.compute.COMPUTES`). The result of a bfloat16 product is rounded to
    bfloat16 once before its scale. ``bias``, (n), is added to the scaled product in float32; the
    sum is rounded to ``dtype`` (None: float32).
    """
    a = _transposed(a) if transpose_a else a
    b = _transposed(b) if transpose_b else b
    (m, k), n = a.values.shape[-2:], b.values.shape[-1]
    is_single = a.values.dim() == 2 and torch.float64 not in (a.values.dtype, b.values.dtype)
    eights = float8_dtypes(a.format, b.format) if compute == "exact-float8" and is_single else None
    if eights is not None and not (m % 16 or k % 16 or n % 16):
        with uncounted():
            y = _float8_product(a.values.to(eights[0]), b.values.to(eights[1]))
    else:
        a, b = ready(a, b, k, compute)
        # Autocast would round the operands of a float32 product behind the recipe's back.
        with torch.autocast(a.values.device.type, enabled=False), uncounted():
            y = a.values @ b.values
    return scale_output(y, (a.scale, b.scale), bias, dtype)


def ready(a: Operand, b: Operand, k: int, compute: str) -> tuple[Operand, Operand]:
    """Return two operands of a sum over ``k`` terms in the dtype in which they are multiplied.

    Where their largest values could exceed float32 in the sum, they are brought near 1 by powers
    of two, which go into the scales.
    """
    dtype = _product_dtype(a, b, compute)
    made = []
    for operand, exponent in zip((a, b), _shift(a, b, k), strict=True):
        values, scale = operand.values, operand.scale
        if exponent and scale is not None:
            values, scale = values * 2.0**-exponent, scale * 2.0**exponent
        made.append(Operand(values.to(dtype), scale, operand.format))
    return made[0], made[1]


def _transposed(operand: Operand) -> Operand:
    values, scale = operand.values, operand.scale
    turned = scale.mT if scale is not None and scale.ndim >= 2 else scale
    return Operand(values.mT, turned, operand.format)


def _float8_product(a: Tensor, b: Tensor) -> Tensor:
    """Multiply (m, k) by (k, n) on FP8 matrix units, which want b column by column; float32."""
    one = torch.ones((), dtype=torch.float32, device=a.device)
    columns = b.t().contiguous().t()
    return torch._scaled_mm(
        a.contiguous(), columns, one, one, out_dtype=torch.float32, use_fast_accum=False
    )


def _product_dtype(a: Operand, b: Operand, compute: str) -> torch.dtype:
    """The dtype in which the values of two operands are multiplied, FP8 units apart."""
    if torch.float64 in (a.values.dtype, b.values.dtype):
        return torch.float64
    if compute == "float32":
        return torch.float32
    formats = (a.format, b.format)
    is_autocast = compute == "bfloat16"
    narrow = all(is_exact_in_bfloat16(f) or (is_autocast and f is None) for f in formats)
    return torch.bfloat16 if narrow else torch.float32


def _shift(a: Operand, b: Operand, k: int) -> tuple[int, int]:
    """Return the powers of two that bring the largest values near 1, if float32 needs it.

    An operand without a scale holds the tensor's own values, and is left alone.
    """
    largest = [_largest(a), _largest(b)]
    if math.prod(largest) * k <= FLOAT32_ROOM:
        return 0, 0
    exponents = [math.frexp(v)[1] - 1 if v > 1 else 0 for v in largest]
    return exponents[0], exponents[1]


def _largest(operand: Operand) -> float:
    """Return the magnitude that a scale brings the largest value to; 1 without a scale."""
    fmt = operand.format
    if operand.scale is None or not isinstance(fmt, Format):
        return 1.0
    # A table need not be symmetric, and listing the values of a float takes a while.
    return fmt.max if isinstance(fmt, FloatFormat) else max(-fmt.values[0], fmt.values[-1])
