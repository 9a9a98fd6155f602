"""A convolution's three products on quantized operands, transposed convolutions included.

The sums of a convolution run over input channels and the kernel's positions; those of its input's
gradient over output channels and the kernel; those of its weight's gradient over samples and
positions. Blocks lie along the channels of the first two, and along the last spatial axis in the
third. Scales that are constant along a sum multiply the output.
`CONVOLUTIONS` reads the calls of torch's functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from altcore.numerics import scale_output
from altcore.quantization.checks import check_operand
from altcore.quantization.compute import output_dtype
from altcore.quantization.flops import uncounted
from altcore.quantization.layer import WeightProducts
from altcore.quantization.product import bias_gradient, clip, ready, save_operands, saved_operands
from altcore.quantization.quantizer import Axes, Operand


@frozen
class Geometry:
    """The arguments of a convolution besides its tensors; see `torch.nn.Conv2d`."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The arguments of torch's operators after the tensors."""
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
    products: WeightProducts, x: Tensor, w: Tensor, bias: Tensor | None, geometry: Geometry
) -> Tensor:
    """Convolve with the three products quantized.

    x: (samples, channels, ...) or without the first; w and bias as torch's functions take them.
    """
    layer = products.layer
    x = check_operand(x, layer.name, "input")
    w = check_operand(w, layer.name, products.parameter)
    is_lone = x.dim() == w.dim() - 1
    x = x.unsqueeze(0) if is_lone else x
    y = QuantizedConv.apply(x, w, bias, geometry, products, layer.module.training)  # type: ignore[no-untyped-call] # torch leaves it untyped
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
        products: WeightProducts,
        training: bool,
    ) -> Tensor:
        ctx.products, ctx.geometry, ctx.training = products, geometry, training
        ctx.dtypes = (x.dtype, w.dtype, bias.dtype if bias is not None else None)
        ctx.sizes = (x.shape, w.shape)
        dims, turned = x.dim() - 2, geometry.transposed
        needs_x, needs_w = ctx.needs_input_grad[:2]
        axes = conv_axes("activation", dims)
        a, x_wgrad = products.operands("activation", x, training, axes, (True, needs_w))
        axes = conv_axes("weight", dims, turned)
        b, w_dgrad = products.operands("weight", w, training, axes, (True, needs_x))
        assert a is not None
        assert b is not None
        save_operands(ctx, a, b, x_wgrad, w_dgrad)
        terms = w.numel() // geometry.groups // w.shape[1] if turned else w[0].numel()
        first, second = ready(a, b, terms, products.compute)
        with torch.autocast(x.device.type, enabled=False), uncounted():
            y = torch.convolution(first.values, second.values, None, *geometry.arguments)
        # Each element of the weight meets each position of the smaller side.
        ctx.flops = 2 * (x if turned else y).numel() * w[0].numel()
        products.count("fwd", a, b, ctx.flops)
        dtype = output_dtype(x, products.compute)
        bias = None if bias is None else bias.reshape(-1, *(1,) * dims)
        return scale_output(y, (first.scale, _by_output(second.scale, turned)), bias, dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        products, dy = ctx.products, grads[0]
        products.begin_backward()
        wanted = ctx.needs_input_grad[:2]
        x_wgrad, w_dgrad, x_clipped, w_clipped = saved_operands(ctx)
        axes = conv_axes("gradient", dy.dim() - 2)
        g_dgrad, g_wgrad = products.operands("gradient", dy, ctx.training, axes, wanted)
        dx = dw = db = None
        if wanted[0]:
            products.count("dgrad", g_dgrad, w_dgrad, ctx.flops)
            dx = clip(_backward(ctx, g_dgrad, None, w_dgrad), x_clipped)
        if wanted[1]:
            products.count("wgrad", g_wgrad, x_wgrad, ctx.flops)
            dw = clip(_backward(ctx, g_wgrad, x_wgrad, None), w_clipped)
        if ctx.needs_input_grad[2]:
            db = bias_gradient(dy, (0, *range(2, dy.dim())), ctx.dtypes[2])
        return dx, dw, db, None, None, None


def _backward(ctx: Any, g: Operand, x: Operand | None, w: Operand | None) -> Tensor:
    """The gradient of the input (from ``w``) or of the weight (from ``x``)."""
    given = w if x is None else x
    assert given is not None
    geometry, sizes = ctx.geometry, ctx.sizes
    turned = geometry.transposed
    channels = sizes[1][0] if turned else sizes[1][1]
    terms = g.values[:, 0].numel() if w is None else sizes[1].numel() // channels
    g, other = ready(g, given, terms, ctx.products.compute)
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


# ------------------------------------------------------------------ calls of torch's functions

Call = tuple[Tensor, Tensor, Tensor | None, Geometry]
"""Input, weight, bias, and the other arguments."""
Size = int | tuple[int, ...] | list[int]


def _plain_call(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Call:
    dims = weight.dim() - 2
    dilations = _each(dilation, dims)
    if isinstance(padding, str):
        input, padding = _padded(input, weight, padding, dilations), 0
    geometry = Geometry(_each(stride, dims), _each(padding, dims), dilations, groups)
    return input, weight, bias, geometry


def _transposed_call(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Call:
    dims = weight.dim() - 2
    geometry = Geometry(
        _each(stride, dims),
        _each(padding, dims),
        _each(dilation, dims),
        groups,
        transposed=True,
        output_padding=_each(output_padding, dims),
    )
    return input, weight, bias, geometry


def _each(size: Size, dims: int) -> tuple[int, ...]:
    """A size for each spatial dimension; torch takes one for all of them."""
    sizes = (size,) if isinstance(size, int) else tuple(size)
    return sizes * dims if len(sizes) == 1 else sizes


def _padded(x: Tensor, w: Tensor, padding: str, dilation: tuple[int, ...]) -> Tensor:
    """Pad so that the output is as large as the input (``same``), the odd one at the end."""
    if padding == "valid":
        return x
    pads: list[int] = []
    for size, step in zip(reversed(w.shape[2:]), reversed(dilation), strict=True):
        total = step * (size - 1)
        pads += [total // 2, total - total // 2]
    return torch.nn.functional.pad(x, pads)


CONVOLUTIONS: Mapping[Callable[..., Any], Callable[..., Call]] = {
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), _plain_call),
    **dict.fromkeys(
        (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d), _transposed_call
    ),
}
"""torch.nn.functional has the same functions."""
