"""The public face: quantize, fake_quantize, codes, and where numbers stand on a grid.

A format is given as a `Format` or a `BlockFormat`, or by its name, which is looked up among the
installed ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from altcore.errors import BadInput
from altcore.formats import AnyFormat, BlockFormat, Format, Stochastic
from altcore.numerics import ordinals
from altcore.numerics.block_scales import largest_of_blocks, spread
from altcore.numerics.blocks import fake_blocks, round_blocks
from altcore.numerics.checks import check_axis, check_choice, check_floating, refuse
from altcore.numerics.codes import decode, encode
from altcore.numerics.magnitudes import amax
from altcore.numerics.resolve import (
    Scale,
    block_rule_for,
    find_grid,
    key_for,
    resolve_format,
    rule_by_amax,
    rule_for,
    scale_pair,
)
from altcore.numerics.rounding import fake_round, round_scaled, round_to_grid
from altcore.numerics.rounding_constants import compute_dtype
from altcore.numerics.scaling import scale_of
from altcore.numerics.straight_through import straight_through
from altcore.numerics.tracing import is_untraced, untraced

__all__ = [
    "decode",
    "encode",
    "fake_quantize",
    "grid_error",
    "neighbours",
    "quantize",
    "resolve_format",
    "stiffness",
    "ulp_distance",
]

SCALINGS = ("none", "tensor", "power-of-two", "channel", "block")
GRADIENTS = ("straight-through", "clipped")


def quantize(
    x: Tensor,
    fmt: AnyFormat | str,
    scaling: str | None = None,
    *,
    axis: int | None = None,
    block: int | None = None,
    rounding: str | Stochastic = "nearest-even",
    overflow: str = "saturate",
    key: int | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Quantize ``x`` exactly: the grid values ``q`` and the scale ``s``; ``q * s`` stands for x.

    ``scaling``: ``tensor`` (the default: the largest magnitude meets the format's),
    ``power-of-two`` (the smallest power of two that holds it), ``channel`` (as ``tensor``, for
    each slice along ``axis``), ``block`` (so for every ``block`` elements along ``axis``, 32 if
    None; the last block may be shorter), or ``none`` (1). ``axis`` is the one along which a
    product would sum, the last if None. ``rounding``, ``overflow`` and ``key`` are those of
    `altcore.numerics.round_to_grid`; ``rounding`` may be `altcore.Stochastic`, and stochastic
    rounding without a key draws one from torch's default generator.

    Returns ``q``, of ``x``'s shape, and ``s``, 0-dim; for ``channel`` of ``x``'s shape with 1 at
    ``axis``, for ``block`` of ``x``'s shape. Both are in the compute dtype: float32, or float64
    for float64 input and for formats beyond float32's range. No gradient flows through either.

    A block format (MXFP4) brings its own scaling, and saturates. ``q`` is each element times its
    block's scale, exact for the named ones, and ``s`` is the tensor's own scale, 1 if the format
    has none.

    Raises `BadInput` for unknown names, an ``axis`` that ``x`` does not have, an ``x`` that is no
    floating-point tensor, a block format with a ``scaling`` or another ``overflow``, and an
    ``axis`` or ``block`` of which the scaling makes no use.
    """
    fmt = resolve_format(fmt)
    if isinstance(fmt, BlockFormat):
        if scaling is not None:
            raise BadInput(f"format {fmt.name} brings its own scaling: {scaling!r} cannot be used")
        refuse(f"format {fmt.name} brings its own blocks", block=block)
        check_floating(x)
        rule, along = block_rule_for(fmt, rounding, overflow), check_axis(x, axis)
        found = round_blocks(x, fmt, rule, axis=along, key=key_for(x, rule, key))
        own = torch.ones((), dtype=found.values.dtype, device=x.device)
        return found.values, own if found.scale is None else found.scale
    rule = rule_for(rounding, overflow)
    if scaling != "none":
        rule = rule_by_amax(fmt, rule)
    key = key_for(x, rule, key)
    if scaling in (None, "tensor", "power-of-two"):
        refuse("the tensor has one scale", axis=axis, block=block)
        by_power = scaling == "power-of-two"
        return round_scaled(x, fmt, rule, power_of_two=by_power, key=key, fake=False)[:2]
    check_floating(x)
    x = x.detach()
    s, r = _scales(x, fmt, scaling, axis, block)
    return round_to_grid(x, fmt, rule, r=r, key=key), s


def fake_quantize(
    x: Tensor,
    fmt: AnyFormat | str,
    scale: Scale | str = None,
    rounding: str | Stochastic = "nearest-even",
    overflow: str = "saturate",
    *,
    axis: int | None = None,
    gradient: str = "straight-through",
    key: int | Tensor | None = None,
) -> Tensor:
    """Replace each element by the nearest value the format can hold: a tensor like ``x``.

    ``scale``: the values are those of the format times it; None (1), a number, a tensor that
    broadcasts to ``x``, or ``"amax"`` (the exact one of this tensor, see
    `altcore.numerics.scale_of`). The result is rounded once to ``x``'s dtype. NaN gives NaN in
    every format; an infinity follows the ``overflow`` rule (saturate, inf, nan, raise).

    Under autograd the scale is a constant, and ``gradient`` says what passes the rounding:
    ``straight-through``, all of it; ``clipped``, only if the scaled value lies between the
    format's smallest and largest value, both included, or is NaN (the straight-through
    estimators of Bengio et al. 2013, arXiv 1308.3432, and Hubara et al. 2016, arXiv 1609.07061).
    No magnitude is too large for the scale ``"amax"``, though the rounded product may seem so.
    Higher derivatives are those of a function with this slope everywhere. Under
    `torch.func.vmap` each slice is quantized by itself.

    ``key`` decides stochastic rounding; None draws one from torch's default generator.

    A block format (MXFP4) brings its own scales, of blocks along ``axis`` (the last if None):
    ``scale`` is None, the overflow rule ``saturate``, and the gradient passes straight through.

    Raises `BadInput` for unknown names, a scale that is not positive (not looked at on a GPU),
    an ``x`` that is not a floating-point tensor, an argument that block formats do not take, or an
    ``axis`` that others do not, and the overflow rule ``raise`` under vmap.
    """
    fmt = resolve_format(fmt)
    check_choice("gradient", gradient, GRADIENTS)
    if isinstance(fmt, BlockFormat):
        if scale is not None:
            raise BadInput(f"format {fmt.name} brings its own scales: scale must be None")
        if gradient != "straight-through":
            raise BadInput(f"format {fmt.name}: the gradient of block formats is straight-through")
        check_floating(x)
        rule, along = block_rule_for(fmt, rounding, overflow), check_axis(x, axis)
        key = key_for(x, rule, key)
        if not _is_differentiated(x):
            return fake_blocks(x, fmt, rule, axis=along, key=key)
        return straight_through(x, None, None, key, fmt, axis=along, rule=rule, by_amax=None)
    refuse(f"format {fmt.name} has no blocks", axis=axis)
    rule = rule_for(rounding, overflow)
    key = key_for(x, rule, key)
    if isinstance(scale, str) and scale != "amax":
        raise BadInput(f"unknown scale {scale!r}: a number, a tensor or 'amax' is needed")
    if isinstance(scale, str):
        rule = rule_by_amax(fmt, rule)
    if not _is_differentiated(x):
        if isinstance(scale, str):
            return round_scaled(x, fmt, rule, key=key, fake=True)[0]
        s, r = scale_pair(scale, x, fmt)
        return fake_round(x, fmt, rule, r=r, s=s, key=key)
    check_floating(x)
    by_amax = isinstance(scale, str) if gradient == "clipped" else None
    pair = scale_of(amax(x), fmt) if isinstance(scale, str) else scale_pair(scale, x, fmt)
    return straight_through(x, *pair, key, fmt, axis=-1, rule=rule, by_amax=by_amax)


def ulp_distance(a: Tensor, b: Tensor, fmt: AnyFormat | str, scale: Scale = None) -> Tensor:
    """Return how many grid steps lie between ``a`` and ``b``, int64, at one scale.

    Both are rounded to nearest first (saturating), with the scale of `fake_quantize`; -0 and 0
    are one position. Shapes broadcast. If either is NaN the distance is -1. Raises `BadInput`
    like `fake_quantize`, and for block formats.
    """
    fmt = find_grid(fmt)
    check_floating(a, "a")
    check_floating(b, "b")
    try:
        pair = torch.broadcast_tensors(a, b)
    except RuntimeError as error:
        shapes = f"{list(a.shape)} and {list(b.shape)}"
        raise BadInput(f"a and b: shapes {shapes} do not broadcast to one another") from error
    places = []
    for x in pair:
        _, r = scale_pair(scale, x, fmt)
        places.append(ordinals.ordinal(round_to_grid(x.detach(), fmt, r=r), fmt))
    missing = (places[0] < 0) | (places[1] < 0)
    return torch.where(missing, -1, (places[0] - places[1]).abs())


def neighbours(x: Tensor, fmt: AnyFormat | str, scale: Scale = None) -> tuple[Tensor, Tensor]:
    """Return the largest value of the format below each element, and the smallest above it.

    Strictly so, on the grid that `fake_quantize` and `decode` have at this ``scale``: the
    format's values times it, each rounded once to the compute dtype. ``x`` is compared with
    these exactly, not by way of its scaled value. Both results have ``x``'s shape and the
    compute dtype; NaN if there is no such value, or if ``x`` is NaN. Raises `BadInput`
    like `fake_quantize`, and for block formats.
    """
    fmt = find_grid(fmt)
    check_floating(x)
    return ordinals.neighbours(x, fmt, scale_pair(scale, x, fmt)[0])


def stiffness(x: Tensor, fmt: AnyFormat | str, scale: Scale = None) -> Tensor:
    """Return the width of the grid interval that contains ``|x|``: how far the next value lies.

    On a grid point it is the interval away from zero; at the largest value and beyond, the one
    below it. ``scale`` is that of `fake_quantize`, and multiplies the widths. Returns the
    compute dtype, of ``x``'s shape; NaN for NaN. Raises `BadInput` like `fake_quantize`, and for
    block formats.
    """
    fmt = find_grid(fmt)
    check_floating(x)
    return ordinals.interval_width(x, fmt, scale_pair(scale, x, fmt)[0])


def grid_error(x: Tensor, fmt: AnyFormat | str, scale: Scale = None) -> Tensor:
    """Return what `fake_quantize` under nearest-even adds to ``x``, in the compute dtype.

    Of ``x``'s shape; no gradient flows through it. Raises `BadInput` like `fake_quantize`, and
    for block formats.
    """
    fmt = find_grid(fmt)
    check_floating(x)
    s, r = scale_pair(scale, x, fmt)
    return ordinals.nearest_error(x, fmt, r, s)


def _is_differentiated(x: Tensor) -> bool:
    """Whether autograd may ask how the result depends on ``x``."""
    forward = torch.autograd.forward_ad._current_level >= 0
    return not is_untraced(x) or forward or (x.requires_grad and torch.is_grad_enabled())


def _scales(
    x: Tensor, fmt: Format, scaling: str, axis: int | None, block: int | None
) -> tuple[Tensor, Any]:
    """The scale ``s`` of each element that ``scaling`` means, and ``r``; None for 1."""
    check_choice("scaling", scaling, SCALINGS)
    if scaling == "none":
        refuse("the scale is 1", axis=axis, block=block)
        return torch.ones((), dtype=compute_dtype(x.dtype, fmt), device=x.device), None
    axis = check_axis(x, axis)
    if scaling == "channel":
        refuse("each channel has one scale", block=block)
        return scale_of(amax(x, axis), fmt)
    blocks = _amax_blocks(fmt, 32 if block is None else block)
    s, r = scale_of(largest_of_blocks(x, blocks, axis), fmt)
    return spread(s, x.shape, blocks, axis), spread(r, x.shape, blocks, axis)


@untraced  # torch.compile cannot trace the making of a frozen object
def _amax_blocks(fmt: Format, block: int) -> BlockFormat:
    return BlockFormat(f"{fmt.name} in blocks", fmt, block, "amax")
