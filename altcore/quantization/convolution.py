"""A convolution's three products on quantized operands, transposed convolutions included.

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
from torch import Tensor

from altcore.numerics import scale_output
from altcore.quantization.compute import output_dtype
from altcore.quantization.flops import uncounted
from altcore.quantization.product import Casts, clip, keep, kept, ready
from altcore.quantization.quantizer import Axes, Operand


@frozen
class Geometry:
    """What a convolution has beside its tensors; see `torch.nn.Conv2d`."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What torch's operators take after the tensors."""
        return (
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            self.output_padding or (0,) * len(self.stride),
            self.groups,
        )


def conv_axes(role: str, dims: int, transposed: bool = False) -> tuple[Axes, Axes]:
    """The axes that a role's two products sum over, with ``dims`` spatial dimensions."""
    spatial = tuple(range(2, 2 + dims))
    if role == "weight":
        axes = (1, *spatial), (0, *spatial)
        return axes[::-1] if transposed else axes
    return (1, *spatial), (*reversed(spatial), 0)


def convolve(
    casts: Casts,
    training: bool,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
) -> Tensor:
    """Convolve with the operands quantized as ``casts`` says.

    x: (samples, channels, ...) or without the first; w and bias as torch's functions take them.
    """
    is_lone = x.dim() == w.dim() - 1
    x = x.unsqueeze(0) if is_lone else x
    y = QuantizedConv.apply(x, w, bias, geometry, casts, training)  # type: ignore[no-untyped-call] # torch leaves it untyped
    return y.squeeze(0) if is_lone else y


class QuantizedConv(torch.autograd.Function):
    """A convolution with each of its six operands quantized as the layer says.

    x: (samples, in, ...), w: (out, in / groups, ...), or (in, out / groups, ...) of a transposed
    one; bias: (out) or None.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
        casts: Casts,
        training: bool,
    ) -> Tensor:
        ctx.casts, ctx.geometry, ctx.training = casts, geometry, training
        ctx.dtypes = (x.dtype, w.dtype, bias.dtype if bias is not None else None)
        ctx.sizes = (x.shape, w.shape)
        dims, turned = x.dim() - 2, geometry.transposed
        needs_x, needs_w = ctx.needs_input_grad[:2]
        axes = conv_axes("activation", dims)
        a, x_wgrad = casts.pair("activation", x, training, axes, (True, needs_w))
        axes = conv_axes("weight", dims, turned)
        b, w_dgrad = casts.pair("weight", w, training, axes, (True, needs_x))
        assert a is not None
        assert b is not None
        keep(ctx, a, b, x_wgrad, w_dgrad)
        terms = w.numel() // geometry.groups // w.shape[1] if turned else w[0].numel()
        first, second = ready(a, b, terms, casts.compute)
        with torch.autocast(x.device.type, enabled=False), uncounted():
            y = torch.convolution(first.values, second.values, None, *geometry.arguments)
        # Each element of the weight meets each position of the smaller side.
        ctx.flops = 2 * (x if turned else y).numel() * w[0].numel()
        casts.count_product("fwd", a, b, ctx.flops)
        dtype = output_dtype(x, casts.compute)
        bias = None if bias is None else bias.reshape(-1, *(1,) * dims)
        return scale_output(y, (first.scale, _by_output(second.scale, turned)), bias, dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        casts, dy = ctx.casts, grads[0]
        casts.begin_backward()
        wanted = ctx.needs_input_grad[:2]
        x_wgrad, w_dgrad, x_inside, w_inside = kept(ctx)
        axes = conv_axes("gradient", dy.dim() - 2)
        g_dgrad, g_wgrad = casts.pair("gradient", dy, ctx.training, axes, wanted)
        dx = dw = db = None
        if wanted[0]:
            casts.count_product("dgrad", g_dgrad, w_dgrad, ctx.flops)
            dx = clip(_backward(ctx, g_dgrad, None, w_dgrad), x_inside)
        if wanted[1]:
            casts.count_product("wgrad", g_wgrad, x_wgrad, ctx.flops)
            dw = clip(_backward(ctx, g_wgrad, x_wgrad, None), w_inside)
        if ctx.needs_input_grad[2]:
            db = dy.sum([0, *range(2, dy.dim())], dtype=torch.float32).to(ctx.dtypes[2])
        return dx, dw, db, None, None, None


def _backward(ctx: Any, g: Operand, x: Operand | None, w: Operand | None) -> Tensor:
    """The gradient of the input (from ``w``) or of the weight (from ``x``)."""
    given = w if x is None else x
    assert given is not None
    geometry, sizes = ctx.geometry, ctx.sizes
    turned = geometry.transposed
    channels = sizes[1][0] if turned else sizes[1][1]
    terms = g.values[:, 0].numel() if w is None else sizes[1].numel() // channels
    g, other = ready(g, given, terms, ctx.casts.compute)
    values = g.values
    # The operand whose gradient is wanted counts by its shape only.
    input = other.values if w is None else values.new_empty(sizes[0])
    weight = other.values if x is None else values.new_empty(sizes[1])
    with torch.autocast(values.device.type, enabled=False), uncounted():
        found: Sequence[Tensor] = torch.ops.aten.convolution_backward(
            values, input, weight, None, *geometry.arguments, [x is None, w is None, False]
        )
    if x is None:  # the weight's slices are those of the input's channels
        scales = g.scale, _by_output(other.scale, not turned)
        return scale_output(found[0], scales, dtype=ctx.dtypes[0])
    # The weight's gradient has the output's channels along axis 0, or 1 of a transposed one.
    by_output, by_input = _by_output(g.scale, turned), _by_output(other.scale, not turned)
    return scale_output(found[1], (by_output, by_input), dtype=ctx.dtypes[1])


def _by_output(scale: Tensor | None, already: bool) -> Tensor | None:
    """A scale of slices along the other of axes 0 and 1, unless it lies right ``already``."""
    return scale if scale is None or scale.ndim == 0 or already else scale.transpose(0, 1)
