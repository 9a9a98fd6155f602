"""Rounding a tensor to a block format: shared scales, and elements rounded under them."""

from __future__ import annotations

from torch import Tensor

from altcore.formats import BlockFormat
from altcore.numerics.backends import block_rounder_for
from altcore.numerics.block_scales import RoundedBlocks
from altcore.numerics.checks import check_blocks
from altcore.numerics.rules import NEAREST, UNMETERED, Meters, Rule


def round_blocks(
    x: Tensor,
    fmt: BlockFormat,
    rule: Rule = NEAREST,
    *,
    axis: int = -1,
    meters: Meters = UNMETERED,
    key: int | Tensor | None = None,
) -> RoundedBlocks:
    """Round ``x`` to a block format along ``axis``.

    Args:
        x: any shape with that axis, floating point; for square blocks, of two axes at least.
        fmt: its blocks saturate.
        rule: the rounding; its overflow rule is ``saturate``.
        axis: the one along which blocks lie; square ones lie along the last two.
        meters: overflows are elements clipped to the element format's largest value; errors weigh
            each block with its scale, but not with the tensor's own.
        key: as in `round_to_grid`; random bits are those of an element's index in ``x``.

    Returns:
        Values and scales. A block with a NaN or an infinity is NaN throughout, and under a
        two-level format the whole tensor is.

    Raises:
        BadInput: for an ``x`` that cannot be so divided, another overflow rule, and what
            `round_to_grid` refuses.
    """
    rounder = block_rounder_for(x, fmt, rule)
    check_blocks(x, fmt, axis)
    return rounder.round(x, axis, meters, key)


def fake_blocks(
    x: Tensor,
    fmt: BlockFormat,
    rule: Rule = NEAREST,
    *,
    axis: int = -1,
    meters: Meters = UNMETERED,
    key: int | Tensor | None = None,
) -> Tensor:
    """Round ``x`` to a block format and back: a tensor like ``x``, rounded once to its dtype.

    Arguments and errors are those of `round_blocks`.
    """
    rounder = block_rounder_for(x, fmt, rule)
    check_blocks(x, fmt, axis)
    return rounder.fake(x, axis, meters, key)
