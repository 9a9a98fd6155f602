"""A linear layer's three products on quantized operands.

The forward pass quantizes ``x`` and ``w``, for all three products, from the unquantized tensors;
the backward pass quantizes the output's gradient.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from altcore.quantization.checks import check_operand
from altcore.quantization.compute import output_dtype
from altcore.quantization.layer import WeightProducts
from altcore.quantization.product import bias_gradient, clip, product, save_operands, saved_operands
from altcore.quantization.quantizer import Axes

LINEAR_AXES: tuple[Axes, Axes] = ((-1,), (-2,))
"""The axes that a role's two products sum over: of (tokens, features) and of (out, in)."""


def multiply(products: WeightProducts, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``x @ w.mT + bias`` with the three products quantized.

    x: (..., in), w: (out, in); or x: (batch, tokens, in), w: (batch, out, in).
    """
    layer = products.layer
    x = check_operand(x, layer.name, "input")
    w = check_operand(w, layer.name, products.parameter)
    return QuantizedLinear.apply(x, w, bias, products, layer.module.training)  # type: ignore[no-untyped-call] # torch leaves it untyped


class QuantizedLinear(torch.autograd.Function):
    """``x @ w.T + bias`` with each of the six operands quantized as the layer says.

    x: (..., in), w: (out, in), bias: (out) or None; or a batch of products, x: (batch, tokens, in),
    w: (batch, out, in) and no bias. The gradient of the bias is the plain sum of the unquantized
    output gradient: it is not a product.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        products: WeightProducts,
        training: bool,
    ) -> Tensor:
        ctx.products, ctx.shape, ctx.training = products, x.shape, training
        ctx.dtypes = (x.dtype, w.dtype, bias.dtype if bias is not None else None)
        ctx.is_batched = w.dim() == 3
        x = x if ctx.is_batched else _rows(x)
        needs_x, needs_w = ctx.needs_input_grad[:2]
        a, x_wgrad = products.operands("activation", x, training, LINEAR_AXES, (True, needs_w))
        b, w_dgrad = products.operands("weight", w, training, LINEAR_AXES, (True, needs_x))
        assert a is not None
        assert b is not None
        save_operands(ctx, a, b, x_wgrad, w_dgrad)
        ctx.flops = 2 * x.numel() * w.shape[-2]
        products.count("fwd", a, b, ctx.flops)
        dtype = output_dtype(x, products.compute)
        y = product(a, b, transpose_b=True, compute=products.compute, bias=bias, dtype=dtype)
        # No view: the caller may change the result in place.
        return torch.ops.aten._unsafe_view(y, [*ctx.shape[:-1], w.shape[-2]])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        products = ctx.products
        products.begin_backward()
        x_wgrad, w_dgrad, x_clipped, w_clipped = saved_operands(ctx)
        wanted = ctx.needs_input_grad[:2]
        dy = grads[0] if ctx.is_batched else _rows(grads[0])
        g_dgrad, g_wgrad = products.operands("gradient", dy, ctx.training, LINEAR_AXES, wanted)
        dx = dw = db = None
        if wanted[0]:
            products.count("dgrad", g_dgrad, w_dgrad, ctx.flops)
            dx = product(g_dgrad, w_dgrad, compute=products.compute, dtype=ctx.dtypes[0])
            dx = clip(dx, x_clipped).reshape(ctx.shape)
        if wanted[1]:
            products.count("wgrad", g_wgrad, x_wgrad, ctx.flops)
            dw = product(
                g_wgrad, x_wgrad, transpose_a=True, compute=products.compute, dtype=ctx.dtypes[1]
            )
            dw = clip(dw, w_clipped)
        if ctx.needs_input_grad[2]:
            db = bias_gradient(dy, (0,), ctx.dtypes[2])
        return dx, dw, db, None, None


def _rows(x: Tensor) -> Tensor:
    """(..., n) as (rows, n); the number of rows is not left to `reshape`, for which n may be 0."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
