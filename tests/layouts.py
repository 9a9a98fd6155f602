"""Tensors as users may have them: the ways in which one can lie in memory, as strategies."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from format_checks import random_floats
from hypothesis import strategies as st
from torch import Tensor

SIZES = st.sampled_from([1, 1, 2, 3, 0, 5, 32, 33, 48])
SHAPES = st.lists(SIZES, max_size=4).map(tuple).filter(lambda shape: math.prod(shape) <= 6000)
"""From no axis to four, among them empty ones and such of one element."""


def _transposed(x: Tensor) -> Tensor:
    return x.movedim(0, -1).contiguous().movedim(-1, 0) if x.ndim else x


def _strided(x: Tensor) -> Tensor:
    return torch.stack([x, -x - 1], -1)[..., 0]


def _offset(x: Tensor) -> Tensor:
    return torch.cat([x.new_full((3,), 7.0), x.flatten()])[3:].view(x.shape)


def _expanded(x: Tensor) -> Tensor:
    """Each element along the first axis is one and the same memory."""
    return x[:1].expand(x.shape) if x.ndim else x.reshape(1).expand(3)[1]


def _overlapping(x: Tensor) -> Tensor:
    """Rows begin one element after another."""
    flat = torch.cat([x.flatten(), x.new_zeros(sum(x.shape) + 1)])
    return flat.as_strided(x.shape, (1,) * x.ndim)


def _unaligned(x: Tensor) -> Tensor:
    size = x.element_size()
    buffer = bytearray(size * (x.numel() + 1) + 1)
    copy = torch.frombuffer(buffer, dtype=x.dtype, offset=1, count=x.numel() + 1)
    return copy[: x.numel()].copy_(x.flatten()).view(x.shape)


def _negative(x: Tensor) -> Tensor:
    return torch._neg_view(-x)


def _conjugate(x: Tensor) -> Tensor:
    """The imaginary part of a conjugate, whose sign is not in memory; float32 only."""
    if x.dtype != torch.float32:
        return x
    return torch.complex(torch.ones_like(x), -x).conj().imag


def _inference(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x.clone()


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "transposed": _transposed,
    "strided": _strided,
    "offset": _offset,
    "flipped": lambda x: x.flip(tuple(range(x.ndim))),
    "expanded": _expanded,
    "overlapping": _overlapping,
    "unaligned": _unaligned,
    "negative": _negative,
    "conjugate": _conjugate,
    "inference": _inference,
    "no memory": lambda x: torch._efficientzerotensor(x.shape, dtype=x.dtype),
    "parameter": lambda x: torch.nn.Parameter(x),
}
DTYPES = (torch.float32, torch.bfloat16)


def numbers(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """float32 numbers of ordinary size, some of any, and a zero now and then."""
    count = math.prod(shape)
    x = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    x[seed % 5 :: 7] = random_floats(len(x[seed % 5 :: 7]), seed)
    x[seed % 3 :: 11] = 0.0
    return x.reshape(shape)


@st.composite
def tensors(
    draw: st.DrawFn,
    shapes: st.SearchStrategy[tuple[int, ...]] = SHAPES,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
) -> Tensor:
    """A tensor of any numbers, in any layout."""
    x = numbers(draw(shapes), draw(st.integers(0, 20))).to(draw(st.sampled_from(dtypes)))
    return LAYOUTS[draw(st.sampled_from(list(LAYOUTS)))](x)


@st.composite
def scales(draw: st.DrawFn, shape: tuple[int, ...]) -> Tensor | None:
    """None, or a positive float32 tensor that broadcasts to ``shape``, in any layout."""
    if draw(st.booleans()) and draw(st.booleans()):
        return None
    kept = shape[draw(st.integers(0, len(shape))) :]
    if draw(st.booleans()):  # as those of slices: the first axes, or any of them
        last = draw(st.integers(0, len(kept)))
        kept = tuple(n if i < last else 1 for i, n in enumerate(kept))
    else:
        kept = tuple(draw(st.sampled_from([n, 1])) for n in kept)
    count = math.prod(kept)
    s = torch.linspace(0.1, 3, count) if count > 1 else torch.full((count,), 0.3)
    layout = draw(st.sampled_from(["contiguous", "contiguous", *LAYOUTS]))
    return s.reshape(kept) if layout == "no memory" else LAYOUTS[layout](s.reshape(kept)).detach()
