"""Calls of torch's convolutions, as `altcore.quantization.convolution` takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from altcore.quantization.convolution import Geometry

Call = tuple[Tensor, Tensor, Tensor | None, Geometry]
"""Input, weight, bias, and what there is beside them."""
Size = int | tuple[int, ...] | list[int]


def _convolution(
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


def _transposed(
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
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), _convolution),
    **dict.fromkeys(
        (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d), _transposed
    ),
}
"""torch.nn.functional has the same functions."""
