"""The quantizer of one operand of one layer: a cast, its scale's state and its counters."""

from __future__ import annotations

import hashlib

import torch
from attrs import define, field, frozen
from torch import Tensor

from altcore.formats import AnyFormat, BlockFormat
from altcore.numerics import (
    UNMETERED,
    Meters,
    amax,
    fake_blocks,
    fake_round,
    is_clipped,
    quantile,
    root_mean_square,
    round_blocks,
    round_scaled,
    round_to_grid,
    scale_of,
    spread,
    transform,
)
from altcore.quantization.context import Context
from altcore.quantization.flops import uncounted
from altcore.quantization.rules import rule_of
from altcore.quantization.site import Site
from altcore.recipes import Cast

Axes = tuple[int, ...]
"""The axes along which a product sums; a block format's blocks lie along the first."""


@define(eq=False)
class Operand:
    """One operand of a product: its values, and the scale that the product is multiplied by.

    The scale is constant along the axes that the product sums over: 0-dim, or of the values'
    rank with 1 there. Where blocks have scales of their own, these are in the values already.
    """

    values: Tensor
    scale: Tensor | None = None
    format: AnyFormat | None = None
    """None for a plain tensor."""
    clipped: Tensor | None = None
    """Mask of the values that get no gradient. None unless the gradient is clipped."""


@define(eq=False)
class RoundedTensor:
    """A tensor rounded element by element."""

    values: Tensor
    """Values of the format, unscaled."""
    r: Tensor | None
    """The tensor was multiplied by it before it was rounded; None for 1."""


@frozen(eq=False)
class BlockScales:
    """The scales of a tensor's blocks; see `altcore.numerics.RoundedBlocks`."""

    scales: Tensor
    """Of the blocks, in their order."""
    scale: Tensor | None
    """Of the tensor itself."""
    shape: torch.Size
    format: BlockFormat
    axis: int
    places: tuple[int, int] | None
    """Where the last two axes of ``shape`` are in the tensor, if elsewhere."""

    def of_elements(self) -> Tensor:
        """Return the scale of every element, of the tensor's shape."""
        each = spread(self.scales, self.shape, self.format, self.axis)
        each = each if self.scale is None else each * self.scale
        return each if self.places is None else each.movedim((-2, -1), self.places)


@define(eq=False)
class Quantizer:
    """Quantizes one operand; scales stay on the device and move in training only."""

    site: Site
    """The operand of the layer that it rounds."""
    cast: Cast
    """Format, scaling, rounding and overflow."""
    context: Context
    counts: Tensor = field(init=False)
    """int64 (4,), its row of the model's counters; see `COUNTS`."""
    errors: Tensor = field(init=False)
    """float64 (2,), its sums of squared errors and of squares."""
    history: Tensor | None = None
    """The last amax values of delayed scaling, float32 (`Scaling.history`,), newest first; zeros
    before the first ones. None for other scalings."""
    kept_scale: Tensor | BlockScales | None = None
    """What `last_scale` is made of when it is asked for."""
    last_key: int | None = None
    """The key of that forward's random bits."""
    calls: int = 0
    """In this step, in training."""
    last_step: int = -1

    @property
    def last_scale(self) -> Tensor | None:
        """The scale of the last training forward, which broadcasts to the tensor.

        0-dim; for channels with 1 on the axes that the product sums over; for a weight in a block
        format of its shape. None for 1, before the first one, and for samples in a block format.
        """
        kept = self.kept_scale
        return kept.of_elements() if isinstance(kept, BlockScales) else kept

    def scales(
        self, x: Tensor, training: bool, axes: Axes | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return (s, r): a rounded value is multiplied by s, ``x`` by r before it is rounded."""
        scaling = self.cast.scaling
        if scaling.kind == "none":
            return None, None
        along = axes if scaling.kind == "channel" else None
        if scaling.kind == "rms":
            largest = root_mean_square(x)
        elif scaling.quantile is None:
            largest = amax(x, along)
        else:
            largest = quantile(x, scaling.quantile, along)
        if training and self.context.largest_of_ranks is not None and self.shares_amax:
            largest = self.context.largest_of_ranks(largest)
        if scaling.kind == "delayed":
            largest = self._delayed(largest, training)
        s, r = scale_of(
            largest,
            self.cast.element,
            power_of_two=scaling.power_of_two,
            margin=scaling.margin,
            meets=1.0 if scaling.kind == "rms" else None,
        )
        if training:
            self.kept_scale = s
        return s, r

    @property
    def shares_amax(self) -> bool:
        """Whether its scale is made of the samples of all ranks, by `share_amax`.

        A channel of samples, as ``gradient@dgrad`` has them, is on one rank alone.
        """
        if self.context.largest_of_ranks is None or not self.site.is_of_samples:
            return False
        scaling = self.cast.scaling
        if scaling.kind == "channel" and not self.site.operand.endswith("@wgrad"):
            return False
        return scaling.kind != "rms" and scaling.quantile is None

    def _delayed(self, largest: Tensor, training: bool) -> Tensor:
        """Return the largest amax of the history; the tensor's own if that is empty."""
        if self.history is None:
            length = self.cast.scaling.history
            self.history = torch.zeros(length, dtype=largest.dtype, device=largest.device)
        before = self.history.max()
        if training:
            # One step with an infinity must not decide the scale of the next ones.
            newest = torch.where(torch.isfinite(largest), largest, 0.0).reshape(1)
            self.history = torch.cat([newest, self.history[:-1]])
        return torch.where(before > 0, before, largest)

    def quantize(
        self,
        x: Tensor,
        training: bool,
        axes: Axes,
        *,
        across: int = -2,
        wants_rounded: bool = False,
        dtype: torch.dtype | None = None,
    ) -> tuple[Operand, RoundedTensor | None]:
        """Return ``x`` as an operand of a product that sums over ``axes``, and element by element.

        Args:
            x: floating point; not modified.
            training: whether scales, counters and random bits move on.
            axes: blocks lie along the first of them; square ones along ``across``, too.
            across: see ``axes``.
            wants_rounded: whether to return the second result.
            dtype: that of the operand's values; None for the compute dtype, which blocks, whose
                scales are in the values, always have.

        Returns:
            The operand; and the rounded tensor, which is None unless it is wanted, and after a
            Hadamard transform, which leaves nothing to compare.
        """
        training = training and not self.context.is_frozen
        x = x.detach()
        key = self.key(training)
        if training:
            self.last_key = key
        cast = self.cast
        if cast.hadamard:
            wants_rounded = False
            with uncounted():
                x = transform(x, cast.hadamard, axes[0], self.context.clock.seed)
        if cast.blocks is not None:
            return self._in_blocks(x, cast.blocks, (across, axes[0]), key, training, wants_rounded)
        q, s, r = self._rounded(x, training, axes, key, dtype)
        operand = Operand(q, s, cast.format)
        if cast.straight_through == "clipped":
            operand.clipped = self._clipped(x, r)
        return operand, RoundedTensor(q, r) if wants_rounded else None

    def _in_blocks(
        self,
        x: Tensor,
        blocks: BlockFormat,
        axes: tuple[int, int],
        key: int | None,
        training: bool,
        wants_rounded: bool,
    ) -> tuple[Operand, RoundedTensor | None]:
        """`quantize` to a block format: along the last of ``axes``, square blocks along both."""
        cast, last = self.cast, (-2, -1)
        is_turned = blocks.is_square and [a % x.ndim for a in axes] != [x.ndim - 2, x.ndim - 1]
        x = x.movedim(axes, last) if is_turned else x
        axis = -1 if blocks.is_square else axes[1]
        rule = rule_of(cast)
        made = round_blocks(x, blocks, rule, axis=axis, meters=self._meters(training), key=key)

        def back(t: Tensor) -> Tensor:
            return t.movedim(last, axes) if is_turned else t

        if training and not self.site.is_of_samples:
            places = axes if is_turned else None
            self.kept_scale = BlockScales(made.scales, made.scale, x.shape, blocks, axis, places)
        operand = Operand(back(made.values), made.scale, blocks)
        if not (wants_rounded or cast.straight_through == "clipped"):
            return operand, None
        r = spread(made.inverse, x.shape, blocks, axis)
        if cast.straight_through == "clipped":
            operand.clipped = back(self._clipped(x, r))
        if not wants_rounded:
            return operand, None
        rounded = round_to_grid(x, cast.element, rule, r=r, key=key)
        return operand, RoundedTensor(back(rounded), back(r))

    def _clipped(self, x: Tensor, r: Tensor | None) -> Tensor:
        return is_clipped(x, r, self.cast.element, by_amax=self.cast.uses_amax)

    def fake(self, x: Tensor, training: bool) -> Tensor:
        """Return ``x`` rounded, as a tensor like ``x``; its last axis is the one summed over."""
        training = training and not self.context.is_frozen
        x = x.detach()
        cast, key = self.cast, self.key(training)
        if cast.blocks is not None:
            meters = self._meters(training)
            return fake_blocks(x, cast.blocks, rule_of(cast), meters=meters, key=key)
        return self._rounded(x, training, (-1,), key, fake=True)[0]

    def _rounded(
        self,
        x: Tensor,
        training: bool,
        axes: Axes,
        key: int | None,
        dtype: torch.dtype | None = None,
        *,
        fake: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return ``x`` rounded, scaled back if ``fake``, and the scales (s, r)."""
        cast, scaling = self.cast, self.cast.scaling
        rule, meters = rule_of(cast), self._meters(training)
        is_own = not (training and self.shares_amax)
        if scaling.kind == "tensor" and scaling.quantile is None and is_own:  # in one call
            made = round_scaled(
                x,
                cast.element,
                rule,
                power_of_two=scaling.power_of_two,
                margin=scaling.margin,
                meters=meters,
                key=key,
                fake=fake,
                dtype=dtype,
            )
            if training:
                self.kept_scale = made[1]
            return made
        s, r = self.scales(x, training, axes)
        if fake:
            q = fake_round(x, cast.element, rule, r=r, s=s, meters=meters, key=key)
            return q, s, r
        q = round_to_grid(x, cast.element, rule, r=r, meters=meters, key=key, dtype=dtype)
        return q, s, r

    def _meters(self, training: bool) -> Meters:
        if not training or self.context.is_recomputing:
            return UNMETERED
        return Meters(self.counts, self.errors if self.context.measures_errors else None)

    def key(self, training: bool) -> int | None:
        """Return the key of this call's random bits; None if rounding needs none."""
        if self.cast.rounding != "stochastic":
            return None
        clock = self.context.clock
        if self.last_step != clock.step:
            self.last_step, self.calls = clock.step, 0
        call = self.calls if training else -1
        self.calls += training
        # Replicas see the same weights, and each its own samples: their noise is independent.
        rank = 0 if self.site.operand.startswith("weight@") else clock.rank
        name = f"{self.site}/rank {rank}" if rank else str(self.site)
        return random_key(clock.seed, clock.step, call, name)


def random_key(seed: int, step: int, micro: int, name: str) -> int:
    """Return a 63-bit key for the random bits of one rounding of one tensor in a run.

    The format is left out on purpose: E0M7 and E1M6 round with the same bits.
    """
    text = f"{seed}/{step}/{micro}/{name}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
