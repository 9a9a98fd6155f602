"""A convolution's three products on quantized operands.

The sums of a convolution run over input channels and the kernel's positions; those of its input's
gradient over output channels and the kernel; those of its weight's gradient over samples and
positions. Blocks lie along the channels of the first two, and along the last spatial axis in the
third. Scales that are constant along a sum multiply the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from altcore.numerics.outputs import scale_output
from altcore.surgery.product import ProductCasts, clip, keep, kept, ready
from altcore.surgery.quantizer import Axes, Operand


@frozen
class Shape:
    """What a convolution has beside its tensors; see `torch.nn.Conv2d`."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def conv_axes(role: str, dims: int) -> tuple[Axes, Axes]:
    """The axes that a role's two products sum over, with ``dims`` spatial dimensions."""
    spatial = tuple(range(2, 2 + dims))
    if role == "weight":
        return (1, *spatial), (0, *spatial)
    return (1, *spatial), (*reversed(spatial), 0)


def convolve(module: nn.Module, x: Tensor, casts: ProductCasts) -> Tensor:
    """Stand in for the forward of a Conv1d, Conv2d or Conv3d with its operands quantized.

    x: (samples, channels, ...) or without the first.
    """
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    dims = len(module.kernel_size)
    lone = x.dim() == dims + 1
    x = x.unsqueeze(0) if lone else x
    padding = module.padding
    if isinstance(padding, str) or module.padding_mode != "zeros":
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = nn.functional.pad(x, module._reversed_padding_repeated_twice, mode=mode)
        padding = (0,) * dims
    shape = Shape(module.stride, tuple(padding), module.dilation, module.groups)
    y = QuantizedConv.apply(  # type: ignore[no-untyped-call] # torch leaves it untyped
        x, module.weight, module.bias, shape, casts, module.training
    )
    return y.squeeze(0) if lone else y


class QuantizedConv(torch.autograd.Function):
    """A convolution with each of its six operands quantized as the layer says.

    x: (samples, in, ...), w: (out, in / groups, ...), bias: (out) or None.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        shape: Shape,
        casts: ProductCasts,
        training: bool,
    ) -> Tensor:
        ctx.casts, ctx.shape, ctx.training = casts, shape, training
        ctx.dtypes = (x.dtype, w.dtype, bias.dtype if bias is not None else None)
        ctx.sizes = (x.shape, w.shape)
        dims = x.dim() - 2
        needs_x, needs_w = ctx.needs_input_grad[:2]
        a, x_wgrad = casts.pair(
            "activation", x, training, conv_axes("activation", dims), (True, needs_w)
        )
        b, w_dgrad = casts.pair("weight", w, training, conv_axes("weight", dims), (True, needs_x))
        assert a is not None
        assert b is not None
        keep(ctx, a, b, x_wgrad, w_dgrad)
        first, second = ready(a, b, w[0].numel(), casts.compute)
        with torch.autocast(x.device.type, enabled=False):
            y = torch.convolution(
                first.values,
                second.values,
                None,
                shape.stride,
                shape.padding,
                shape.dilation,
                False,
                (0,) * dims,
                shape.groups,
            )
        ctx.flops = 2 * y.numel() * w[0].numel()
        casts.count_product(a, b, ctx.flops)
        dtype = torch.bfloat16 if casts.compute == "bfloat16" else x.dtype
        bias = None if bias is None else bias.reshape(-1, *(1,) * dims)
        return scale_output(y, (first.scale, _swapped(second.scale)), bias, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        casts, dy = ctx.casts, grads[0]
        wanted = ctx.needs_input_grad[:2]
        x_wgrad, w_dgrad, x_inside, w_inside = kept(ctx)
        axes = conv_axes("gradient", dy.dim() - 2)
        g_dgrad, g_wgrad = casts.pair("gradient", dy, ctx.training, axes, wanted)
        dx = dw = db = None
        if wanted[0]:
            casts.count_product(g_dgrad, w_dgrad, ctx.flops)
            dx = _backward(ctx, g_dgrad, None, w_dgrad)
            dx = clip(dx, x_inside)
        if wanted[1]:
            casts.count_product(g_wgrad, x_wgrad, ctx.flops)
            dw = _backward(ctx, g_wgrad, x_wgrad, None)
            dw = clip(dw, w_inside)
        if ctx.needs_input_grad[2]:
            db = dy.sum([0, *range(2, dy.dim())], dtype=torch.float32).to(ctx.dtypes[2])
        return dx, dw, db, None, None, None


def _backward(ctx: Any, g: Operand, x: Operand | None, w: Operand | None) -> Tensor:
    """The gradient of the input (from ``w``) or of the weight (from ``x``)."""
    given = w if x is None else x
    assert given is not None
    shape, sizes = ctx.shape, ctx.sizes
    terms = g.values[:, 0].numel() if w is None else sizes[1].numel() // sizes[1][1]
    g, other = ready(g, given, terms, ctx.casts.compute)
    values = g.values
    # The operand whose gradient is wanted counts by its shape only.
    input = other.values if w is None else values.new_empty(sizes[0])
    weight = other.values if x is None else values.new_empty(sizes[1])
    with torch.autocast(values.device.type, enabled=False):
        found: Sequence[Tensor] = torch.ops.aten.convolution_backward(
            values,
            input,
            weight,
            None,
            shape.stride,
            shape.padding,
            shape.dilation,
            False,
            [0] * (values.dim() - 2),
            shape.groups,
            [x is None, w is None, False],
        )
    if x is None:
        return scale_output(found[0], (g.scale, other.scale), dtype=ctx.dtypes[0])
    return scale_output(found[1], (_swapped(g.scale), other.scale), dtype=ctx.dtypes[1])


def _swapped(scale: Tensor | None) -> Tensor | None:
    """A scale of slices along axis 0 as one along axis 1, and the other way about."""
    return scale if scale is None or scale.ndim == 0 else scale.transpose(0, 1)
