"""The quantizer of one operand of one layer: a cast, its scale's state and its counters."""

from __future__ import annotations

import hashlib

import torch
from attrs import define
from torch import Tensor

from altcore.formats import AnyFormat, BlockFormat
from altcore.numerics import (
    Blocks,
    Given,
    amax,
    fake_blocks,
    fake_round,
    quantile,
    root_mean_square,
    round_blocks,
    round_scaled,
    round_to_grid,
    scale_of,
    spread,
    transform,
)
from altcore.quantization.flops import uncounted
from altcore.recipes import Cast

Axes = tuple[int, ...]
"""The axes along which a product sums; a block format's blocks lie along the first."""


@define(eq=False)
class Clock:
    """Where in the run we are: what stochastic rounding's random bits are a function of."""

    seed: int = 0
    step: int = 0
    training: bool = True
    """Off in a probe: no scale, counter or random state moves."""
    measures_errors: bool = False
    """Whether quantizers sum the squares of their errors."""

    @property
    def rank(self) -> int:
        """The number of this process among those that train together; 0 for a lone one."""
        d = torch.distributed
        return d.get_rank() if d.is_available() and d.is_initialized() else 0


@define(eq=False)
class Operand:
    """One operand of a product: values on a grid and what their product is multiplied by.

    The scale is constant along the axes that the product sums over: 0-dim, or of the values'
    rank with 1 there. Where blocks have scales of their own, these are in the values already.
    """

    values: Tensor
    scale: Tensor | None = None
    format: AnyFormat | None = None
    """None for a plain tensor."""
    inside: Tensor | None = None
    """Where the values did not pass the format's range, if the gradient has to know."""


@define(eq=False)
class Grid:
    """Where a tensor was rounded: the unscaled grid values, and what it was multiplied by."""

    values: Tensor
    r: Tensor | None


@define(eq=False)
class Quantizer:
    """Quantizes one operand; scales stay on the device and move in training only."""

    name: str
    cast: Cast
    clock: Clock
    counts: Tensor
    """int64, one row of the model's counters; see `altcore.numerics.COUNTS`."""
    errors: Tensor
    """float64 (2,), squared errors and squares, in steps where they are asked for."""
    history: Tensor | None = None
    """The last amax values of delayed scaling, newest first; zeros where there were none."""
    last_scale: Tensor | None = None
    """The scale of the last training forward, which broadcasts to the tensor."""
    last_key: int | None = None
    """The key of that forward's random bits."""
    calls: int = 0
    """In this step, in training."""
    last_step: int = -1

    @property
    def layer(self) -> str:
        """The layer's name."""
        return self.name.rpartition(":")[0]

    @property
    def operand(self) -> str:
        """The operand's name, as in a recipe."""
        return self.name.rpartition(":")[2].partition("/")[0]

    @property
    def parameter(self) -> str:
        """The layer's parameter that is multiplied or looked up; empty for its ``weight``."""
        return self.name.rpartition(":")[2].partition("/")[2]

    def scales(
        self, x: Tensor, training: bool, axes: Axes | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return (s, r) for ``x``: what a grid value is multiplied by, and what ``x`` is."""
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
            self.last_scale = s
        return s, r

    def _delayed(self, largest: Tensor, training: bool) -> Tensor:
        """Return the largest of the amax seen before; where nothing was, the tensor's own."""
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
        wants_grid: bool = False,
        dtype: torch.dtype | None = None,
    ) -> tuple[Operand, Grid | None]:
        """Return ``x`` as an operand of a product that sums over ``axes``, and its grid.

        Square blocks lie along the first of ``axes`` and along ``across``. ``dtype``: in which
        the product takes grid values; None for the compute dtype. Blocks, whose scales are in the
        values, keep that.
        The grid is None unless it is wanted, and after a Hadamard transform, which leaves
        nothing to compare.
        """
        training = training and self.clock.training
        x = x.detach()
        key = self.key(training)
        if training:
            self.last_key = key
        cast = self.cast
        if cast.hadamard:
            wants_grid = False
            with uncounted():
                x = transform(x, cast.hadamard, axes[0], self.clock.seed)
        if cast.blocks is not None:
            return self._in_blocks(x, cast.blocks, (across, axes[0]), key, training, wants_grid)
        q, s, r = self._rounded(x, training, axes, key, dtype)
        operand = Operand(q, s, cast.format)
        if cast.straight_through == "clipped":
            operand.inside = self._inside(x, r)
        return operand, Grid(q, r) if wants_grid else None

    def _in_blocks(
        self,
        x: Tensor,
        blocks: BlockFormat,
        axes: tuple[int, int],
        key: int | None,
        training: bool,
        wants_grid: bool,
    ) -> tuple[Operand, Grid | None]:
        """`quantize`, where blocks have scales: along the last of ``axes``, square ones both."""
        cast, last = self.cast, (-2, -1)
        is_turned = blocks.is_square and [a % x.ndim for a in axes] != [x.ndim - 2, x.ndim - 1]
        x = x.movedim(axes, last) if is_turned else x
        axis = -1 if blocks.is_square else axes[1]
        made = round_blocks(
            x,
            blocks,
            axis=axis,
            rounding=cast.rounding,
            counts=self.counts if training else None,
            errors=self.errors if training and self.clock.measures_errors else None,
            key=key,
        )

        def back(t: Tensor) -> Tensor:
            return t.movedim(last, axes) if is_turned else t

        operand = Operand(back(made.values), made.scale, blocks)
        if not (wants_grid or cast.straight_through == "clipped"):
            return operand, None
        r = spread(made.inverse, x.shape, blocks, axis)
        if cast.straight_through == "clipped":
            operand.inside = back(self._inside(x, r))
        if not wants_grid:
            return operand, None
        if training:
            self.last_scale = back(_block_scale(made, x.shape, blocks, axis))
        grid = round_to_grid(x, cast.element, rounding=cast.rounding, r=r, key=key)
        return operand, Grid(back(grid), back(r))

    def _inside(self, x: Tensor, r: Tensor | None) -> Tensor:
        y = x if r is None else x * r
        values = self.cast.element.values
        return (y >= values[0]) & (y <= values[-1])

    def fake(self, x: Tensor, training: bool) -> Tensor:
        """Return ``x`` rounded to the grid, as a tensor like ``x``; axes are its last one."""
        training = training and self.clock.training
        x = x.detach()
        cast, counts = self.cast, self.counts if training else None
        errors = self.errors if training and self.clock.measures_errors else None
        key = self.key(training)
        if cast.blocks is not None:
            return fake_blocks(
                x, cast.blocks, rounding=cast.rounding, counts=counts, errors=errors, key=key
            )
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
        """Return ``x`` on the grid, under ``fake`` there and back, and the scales (s, r)."""
        cast, scaling = self.cast, self.cast.scaling
        errors = self.errors if training and self.clock.measures_errors else None
        given: Given = {
            "rounding": cast.rounding,
            "overflow": cast.overflow,
            "counts": self.counts if training else None,
            "errors": errors,
            "key": key,
        }
        if scaling.kind == "tensor" and scaling.quantile is None:  # in one call
            made = round_scaled(
                x,
                cast.element,
                power_of_two=scaling.power_of_two,
                margin=scaling.margin,
                fake=fake,
                dtype=dtype,
                **given,
            )
            if training:
                self.last_scale = made[1]
            return made
        s, r = self.scales(x, training, axes)
        if fake:
            return fake_round(x, cast.element, r=r, s=s, **given), s, r
        return round_to_grid(x, cast.element, r=r, dtype=dtype, **given), s, r

    def key(self, training: bool) -> int | None:
        """Return the key of this call's random bits; None where rounding needs none."""
        if self.cast.rounding != "stochastic":
            return None
        if self.last_step != self.clock.step:
            self.last_step, self.calls = self.clock.step, 0
        call = self.calls if training else -1
        self.calls += training
        # Replicas see the same weights, and each its own samples: their noise is independent.
        rank = 0 if self.operand.startswith("weight@") else self.clock.rank
        name = f"{self.name}/rank {rank}" if rank else self.name
        return random_key(self.clock.seed, self.clock.step, call, name)


def _block_scale(made: Blocks, shape: torch.Size, fmt: BlockFormat, axis: int) -> Tensor:
    """The scale of every element, of ``shape``."""
    scale = spread(made.scales, shape, fmt, axis)
    return scale if made.scale is None else scale * made.scale


def random_key(seed: int, step: int, micro: int, name: str) -> int:
    """Return a 63-bit key that is a hash of where in the run a tensor is rounded.

    The format is left out on purpose: E0M7 and E1M6 round with the same bits.
    """
    text = f"{seed}/{step}/{micro}/{name}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
