"""A cast: the format, scaling and rounding of one operand."""

from __future__ import annotations

import itertools
import math
from functools import cache, cached_property
from typing import Any

from attrs import field, frozen
from attrs.validators import and_, ge, gt, in_, le, optional

from altcore.formats import (
    AnyFormat,
    BlockFormat,
    Format,
    ScaleRule,
    Stochastic,
    full_rounding,
    has_code,
    saved,
)

SCALINGS = ("none", "tensor", "channel", "block", "delayed", "rms")
STRAIGHT_THROUGH = ("identity", "clipped")

FLOAT32_MAX = (2 - 2**-23) * 2.0**127
LONGEST_HISTORY = 1_000_000
"""Amax that each quantizer keeps, in steps."""


@frozen
class Scaling:
    """How a tensor's scale comes about.

    ``tensor``: its largest magnitude (amax) meets the format's largest value. ``channel``: so for
    each slice along the product's reduction axis. ``block``: so for each ``block`` elements along
    it. ``delayed``: the largest of the last ``history`` amax of the tensor. ``rms``: the tensor's
    root mean square meets 1, the point at which tapered formats are finest. ``none``: scale 1.
    """

    kind: str = field(default="tensor", validator=in_(SCALINGS))
    """none, tensor, channel, block, delayed or rms."""
    power_of_two: bool = False
    """Whether the scale is the smallest power of two that holds amax."""
    margin: float = field(default=1.0, validator=[gt(0), le(FLOAT32_MAX)])
    """Multiplies amax."""
    history: int = field(default=16, validator=[ge(1), le(LONGEST_HISTORY)])
    """How many amax values delayed scaling looks back on."""
    block: int = field(default=32, validator=ge(1))
    """Elements of a block, along the axis that the product sums over."""
    quantile: float | None = field(default=None, validator=optional(and_(gt(0), le(1))))
    """The share of the elements whose largest magnitude takes the place of amax; None for amax."""

    def __attrs_post_init__(self) -> None:
        if self.kind == "block" and (self.margin != 1 or self.quantile is not None):
            raise ValueError("blocks are scaled by their amax: no margin and no quantile")
        if self.kind in ("none", "rms") and self.quantile is not None:
            raise ValueError(f"the scaling {self.kind} has no amax for a quantile to stand for")

    @property
    def uses_amax(self) -> bool:
        """Whether no value of the tensor can overflow, by construction."""
        by_amax = self.kind in ("tensor", "channel", "block") and self.quantile in (None, 1)
        return by_amax and self.margin >= 1

    @property
    def suits_storage(self) -> bool:
        """Whether a stored tensor, which has a single scale, can have it."""
        by_size = self.kind in ("none", "tensor", "rms")
        return by_size and self.margin == 1 and self.quantile is None

    def to_plain(self) -> dict[str, Any]:
        """Return the scaling as a recipe file writes it."""
        return {
            "kind": self.kind,
            "power_of_two": self.power_of_two,
            "margin": self.margin,
            "history": self.history,
            "block": self.block,
            "quantile": self.quantile,
        }


@frozen(slots=False)
class Cast:
    """How one operand is rounded."""

    format: AnyFormat
    """A `Format`, or a `BlockFormat`."""
    scaling: Scaling
    """How its scale comes about."""
    rounding: str = field(default="nearest-even", converter=full_rounding)
    """The rule that picks one of the two nearest values."""
    overflow: str = "saturate"
    """What a number beyond the largest value becomes: that value (saturate), inf or nan."""
    hadamard: int = 0
    """The length of the pieces that a random Hadamard matrix multiplies before, along the axis that
    the product sums over; 0 for none. Both operands of a product have the same."""
    straight_through: str = "identity"
    """identity: the gradient passes the rounding as it is; clipped: only where the operand did not
    pass the format's range."""
    stochastic: Stochastic = field(default=Stochastic())
    """Settings of stochastic rounding; without effect on the others."""

    @property
    def element(self) -> Format:
        """The format of single values: that of a block format's elements, or the format."""
        return self.format.element if isinstance(self.format, BlockFormat) else self.format

    @cached_property
    def blocks(self) -> BlockFormat | None:
        """The block format, if blocks have scales of their own."""
        if isinstance(self.format, BlockFormat):
            return self.format
        if self.scaling.kind != "block":
            return None
        rule: ScaleRule = "power-of-two" if self.scaling.power_of_two else "amax"
        length = self.scaling.block
        return BlockFormat(f"{self.format.name} in blocks of {length}", self.format, length, rule)

    @property
    def has_axis(self) -> bool:
        """Whether the result depends on the axis along which a product sums."""
        if self.blocks is not None and not self.blocks.is_square:
            return True
        return self.hadamard > 0 or self.scaling.kind == "channel"

    @property
    def uses_amax(self) -> bool:
        """Whether no value can overflow, by construction; other rules of blocks may clip."""
        rule = self.format.rule if isinstance(self.format, BlockFormat) else "amax"
        return self.scaling.uses_amax and rule == "amax"

    def to_plain(self) -> dict[str, Any]:
        """Return the cast as a recipe file writes it."""
        return {
            "format": saved(self.format),
            "scaling": self.scaling.to_plain(),
            "rounding": self._plain_rounding(),
            "overflow": self.overflow,
            "hadamard": self.hadamard,
            "straight_through": self.straight_through,
        }

    def _plain_rounding(self) -> str | dict[str, Any]:
        if self.rounding != "stochastic" or self.stochastic == Stochastic():
            return self.rounding
        return {"kind": self.rounding, **self.stochastic._asdict()}


def default_scaling(fmt: AnyFormat) -> Scaling:
    """Return the scaling of a format if the recipe names none: exact amax, per tensor.

    A format with the range of float32 (BF16) needs no scale and gets none: an exact amax scale
    would only move its grid off the powers of two. In a tapered one (a posit) the largest values
    are the coarsest, and one with a single magnitude has nothing below it: there the root mean
    square is brought to 1. A block format brings its own.
    """
    if isinstance(fmt, BlockFormat):
        return Scaling("block", block=fmt.block)
    if fmt.max >= 2.0**126:
        return Scaling("none")
    return Scaling("rms") if is_tapered(fmt) else Scaling("tensor")


@cache
def is_tapered(fmt: Format) -> bool:
    """Whether values are finest for their size at 1, and much coarser at the largest."""
    positive = [v for v in fmt.values if v > 0]
    if len(positive) < 2:
        return positive == [1.0]
    steps = {a: b / a - 1 for a, b in itertools.pairwise(positive)}
    at_one = steps.get(1.0, math.inf)
    *_, last = steps.values()
    # Within a binade steps shrink by half, for the size of the values.
    return last > 4 * at_one and at_one <= 2 * min(steps.values())


def has_overflow(fmt: AnyFormat, overflow: str) -> bool:
    """Whether a format has the code that an overflow rule asks for."""
    return overflow == "saturate" if isinstance(fmt, BlockFormat) else has_code(fmt, overflow)
