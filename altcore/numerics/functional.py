"""The public face: quantize, fake_quantize, encode, decode and ulp_distance.

A format is given as a `Format` or by its name, which is looked up among the installed ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from altcore.errors import BadInput, nearest
from altcore.formats import Format
from altcore.numerics.grids import check_floating, check_input, fake_round, round_to_grid
from altcore.numerics.native import plain
from altcore.numerics.plan import LAYOUTS, compute_dtype, to_single
from altcore.numerics.positions import position
from altcore.numerics.scaling import amax, scale_of

SCALINGS = ("none", "tensor", "power-of-two")

Scale = float | Tensor | None


def quantize(
    x: Tensor,
    fmt: Format | str,
    scaling: str = "tensor",
    *,
    rounding: str = "nearest-even",
    overflow: str = "saturate",
    key: int | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Quantize ``x`` exactly: the grid values ``q`` and the scale ``s``; ``q * s`` stands for x.

    ``scaling``: ``tensor`` (the largest magnitude meets the format's), ``power-of-two`` (the
    smallest power of two that holds it), or ``none`` (1). ``rounding``, ``overflow`` and ``key``
    are those of `altcore.numerics.round_to_grid`. Returns ``q``, of ``x``'s shape, and ``s``,
    0-dim, in the compute dtype: float32, or float64 for float64 input and for formats beyond
    float32's range. No gradient flows through either.

    Raises `BadInput` for unknown names and for what is not a floating-point tensor.
    """
    fmt = find(fmt)
    if scaling not in SCALINGS:
        raise BadInput(
            f"unknown scaling {scaling!r}{nearest(scaling, SCALINGS)}; known: {', '.join(SCALINGS)}"
        )
    check_floating(x)
    x = x.detach()
    r = None
    if scaling == "none":
        s = torch.ones((), dtype=compute_dtype(x.dtype, fmt), device=x.device)
    else:
        s, r = scale_of(amax(x), fmt, power_of_two=scaling == "power-of-two")
    return round_to_grid(x, fmt, rounding=rounding, overflow=overflow, r=r, key=key), s


def fake_quantize(
    x: Tensor,
    fmt: Format | str,
    scale: Scale | str = None,
    rounding: str = "nearest-even",
    overflow: str = "saturate",
    *,
    key: int | Tensor | None = None,
) -> Tensor:
    """Replace each element by the nearest value the format can hold: a tensor like ``x``.

    ``scale``: the values are those of the format times it; None (1), a number, a tensor that
    broadcasts to ``x``, or ``"amax"`` (the exact one of this tensor, see
    `altcore.numerics.scale_of`). The result is rounded once to ``x``'s dtype. NaN gives NaN in
    every format; an infinity follows the ``overflow`` rule (saturate, inf, nan, raise). Under
    autograd the gradient passes straight through, and the scale is a constant.

    Raises `BadInput` for unknown names, a scale that is not positive (not looked at on a GPU),
    and what is not a floating-point tensor.
    """
    fmt = find(fmt)
    check_input(x, fmt, rounding, overflow, key)
    if isinstance(scale, str):
        if scale != "amax":
            raise BadInput(f"unknown scale {scale!r}: a number, a tensor or 'amax' is needed")
        s, r = scale_of(amax(x), fmt)
        pair: tuple[Tensor | None, Tensor | None] = (s, r)
    else:
        pair = _pair(scale, x, fmt)
    return _straight_through(x, fmt, pair, rounding, overflow, key)


def encode(
    x: Tensor,
    fmt: Format | str,
    scale: Scale = None,
    *,
    rounding: str = "nearest-even",
    overflow: str = "saturate",
    key: int | Tensor | None = None,
) -> Tensor:
    """Return the codes of ``x`` in the format: uint8 up to 8 bits, int32 above, of ``x``'s shape.

    Values are rounded first, as by `fake_quantize`; a value that is on the grid keeps its code
    exactly, -0 where the format has it included. Raises `BadInput` like `fake_quantize`, and for
    a NaN where the format has no NaN code.
    """
    fmt = find(fmt)
    check_input(x, fmt, rounding, overflow, key)
    x = x.detach()
    _, r = _pair(scale, x, fmt)
    q = round_to_grid(x, fmt, rounding=rounding, overflow=overflow, r=r, key=key)
    codes, minus_zero, nan, infinities = _codes(fmt)
    index = position(q, fmt)
    result = codes.to(q.device)[index.clamp(min=0)]
    if minus_zero is not None:
        result = torch.where((q == 0) & torch.signbit(q), minus_zero, result)
    if infinities is not None:
        result = torch.where(torch.isposinf(q), infinities[1], result)
        result = torch.where(torch.isneginf(q), infinities[0], result)
    if nan is not None:
        result = torch.where(torch.isnan(q), nan, result)
    elif bool(torch.isnan(q).any()):
        raise BadInput(f"NaN cannot be encoded: format {fmt.name} has no NaN code")
    return result.to(torch.uint8 if fmt.bits <= 8 else torch.int32)


def decode(codes: Tensor, fmt: Format | str, scale: Scale = None) -> Tensor:
    """Return the values of ``codes`` (any integer dtype), times ``scale``, in the compute dtype.

    That is float32, or float64 for formats beyond its range. Raises `BadInput` for what is not
    an integer tensor and for codes the format does not have.
    """
    fmt = find(fmt)
    integer = isinstance(codes, Tensor) and not (codes.is_floating_point() or codes.is_complex())
    if not integer or codes.dtype == torch.bool:
        raise BadInput("decode needs a tensor of integer codes")
    dtype = compute_dtype(torch.float32, fmt)
    index = codes.to(torch.int64)
    count = len(fmt.code_values)
    if index.numel() and not (int(index.min()) >= 0 and int(index.max()) < count):
        raise BadInput(f"format {fmt.name} has codes 0 to {count - 1}")
    values = _decoded(fmt, dtype).to(codes.device)[index]
    s, _ = _pair(scale, values, fmt)
    return values if s is None else values * s.to(dtype)


def ulp_distance(a: Tensor, b: Tensor, fmt: Format | str, scale: Scale = None) -> Tensor:
    """Return how many grid steps lie between ``a`` and ``b``, int64, at one scale.

    Both are rounded to nearest first (saturating), with the scale of `fake_quantize`; -0 and 0
    are one position. Shapes broadcast. Where either is NaN the distance is -1.
    """
    fmt = find(fmt)
    places = []
    for x in (a, b):
        check_floating(x)
        _, r = _pair(scale, x, fmt)
        places.append(position(round_to_grid(x.detach(), fmt, r=r), fmt))
    missing = (places[0] < 0) | (places[1] < 0)
    return torch.where(missing, -1, (places[0] - places[1]).abs())


def find(fmt: Format | str) -> Format:
    """Return ``fmt`` itself, or the installed format of that name; `BadInput` if unknown."""
    if isinstance(fmt, Format):
        return fmt
    if not isinstance(fmt, str):
        raise BadInput(f"a format or its name is needed, not {type(fmt).__name__}")
    from altcore.registry import get_format  # only names need the installed plugins

    return get_format(fmt)


def _pair(scale: Scale, x: Tensor, fmt: Format) -> tuple[Tensor | None, Tensor | None]:
    """The given scale as tensors ``s`` and ``r = fl(1 / s)`` in ``x``'s compute dtype."""
    if scale is None:
        return None, None
    dtype = compute_dtype(x.dtype, fmt)
    if isinstance(scale, Tensor):
        check_floating(scale)
        scale = scale.detach()
        # Looked at where that costs no transfer; the smallest one is NaN if any is.
        number = float(scale.min()) if plain(scale) and scale.numel() else 1.0
        s = scale.to(device=x.device, dtype=dtype)
    elif isinstance(scale, int | float) and not isinstance(scale, bool):
        number = float(scale) if dtype == torch.float64 else to_single(float(scale))
        s = torch.full((), number, dtype=dtype, device=x.device)
    else:
        raise BadInput(f"a scale is a number or a tensor, not {scale!r}")
    if not 0 < number < math.inf:
        raise BadInput(f"a scale is a positive number in {dtype}, not {number}")
    # Clamped as in scale_of, for scales whose inverse passes the largest number.
    largest = torch.full_like(s, LAYOUTS[dtype].largest)
    return s, torch.minimum(torch.ones_like(s) / s, largest)


class _StraightThrough(torch.autograd.Function):
    """Quantization whose gradient is the identity."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        fmt: Format,
        pair: tuple[Tensor | None, Tensor | None],
        rounding: str,
        overflow: str,
        key: int | Tensor | None,
    ) -> Tensor:
        """Round; nothing has to be kept for the backward pass."""
        s, r = pair
        return fake_round(x, fmt, r=r, s=s, rounding=rounding, overflow=overflow, key=key)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Pass the gradient on; the other arguments have none."""
        return grads[0], None, None, None, None, None


# The base class has no annotations.
_straight_through: Callable[..., Tensor] = _StraightThrough.apply


@cache
def _codes(fmt: Format) -> tuple[Tensor, int | None, int | None, tuple[int, int] | None]:
    """The code of each of ``fmt.values``; those of -0, of NaN, and of the two infinities."""
    first: dict[float, int] = {}
    minus_zero: int | None = None
    for code, value in enumerate(fmt.code_values):
        if value == 0 and math.copysign(1.0, value) < 0:
            minus_zero = code if minus_zero is None else minus_zero
        else:
            first.setdefault(value, code)
    if minus_zero is not None:
        first.setdefault(0.0, minus_zero)
    codes = torch.tensor([first[v] for v in fmt.values], dtype=torch.int64)
    nan = fmt.nan_codes[0] if fmt.nan_codes else None
    infinities = (first[-math.inf], first[math.inf]) if fmt.inf_codes else None
    return codes, minus_zero, nan, infinities


@cache
def _decoded(fmt: Format, dtype: torch.dtype) -> Tensor:
    return torch.tensor(fmt.code_values, dtype=dtype)
