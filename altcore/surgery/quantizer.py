"""The quantizer of one operand of one layer: a cast, its scale's state and its counters."""

from __future__ import annotations

import hashlib

import torch
from attrs import define
from torch import Tensor

from altcore.formats import Format
from altcore.numerics import amax, fake_round, round_to_grid, scale_of
from altcore.recipe import Cast


@define(eq=False)
class Clock:
    """Where in the run we are: what stochastic rounding's random bits are a function of."""

    seed: int = 0
    step: int = 0
    training: bool = True
    """Off in a probe: no scale, counter or random state moves."""


@define(eq=False)
class Operand:
    """One operand of a product: unscaled grid values and their scale; or a plain tensor."""

    values: Tensor
    scale: Tensor | None = None
    format: Format | None = None


@define(eq=False)
class Quantizer:
    """Quantizes one operand; scales stay on the device and move in training only."""

    name: str
    cast: Cast
    clock: Clock
    counts: Tensor
    """int64, one row of the model's counters; see `altcore.numerics.COUNTS`."""
    history: Tensor | None = None
    """The last amax values of delayed scaling, newest first; zeros where there were none."""
    last_scale: Tensor | None = None
    """The scale of the last training forward."""
    last_key: int | None = None
    """The key of that forward's random bits."""
    calls: int = 0
    last_step: int = -1

    def scales(self, x: Tensor, training: bool) -> tuple[Tensor | None, Tensor | None]:
        """Return (s, r) for ``x``: what a grid value is multiplied by, and what ``x`` is."""
        scaling = self.cast.scaling
        if scaling.kind == "none":
            return None, None
        largest = amax(x)
        if scaling.kind == "delayed":
            if self.history is None:
                self.history = torch.zeros(
                    scaling.history, dtype=largest.dtype, device=largest.device
                )
            before = self.history.max()
            if training:
                self.history = torch.cat([largest.reshape(1), self.history[:-1]])
            # Nothing was seen yet: the tensor's own amax.
            largest = torch.where(before > 0, before, largest)
        s, r = scale_of(
            largest,
            self.cast.format,
            power_of_two=scaling.power_of_two,
            margin=scaling.margin,
        )
        if training:
            self.last_scale = s
        return s, r

    def operand(self, x: Tensor, training: bool) -> tuple[Operand, Tensor | None]:
        """Return the exact pair (grid values, scale) and the multiplier r."""
        training = training and self.clock.training
        x = x.detach()
        s, r = self.scales(x, training)
        key = self.key(training)
        if training:
            self.last_key = key
        q = round_to_grid(
            x,
            self.cast.format,
            rounding=self.cast.rounding,
            overflow=self.cast.overflow,
            r=r,
            counts=self.counts if training else None,
            key=key,
        )
        return Operand(q, s, self.cast.format), r

    def fake(self, x: Tensor, training: bool) -> Tensor:
        """Return ``x`` rounded to the grid, as a tensor like ``x``."""
        training = training and self.clock.training
        x = x.detach()
        s, r = self.scales(x, training)
        return fake_round(
            x,
            self.cast.format,
            rounding=self.cast.rounding,
            overflow=self.cast.overflow,
            r=r,
            s=s,
            counts=self.counts if training else None,
            key=self.key(training),
        )

    def key(self, training: bool) -> int | None:
        """Return the key of this call's random bits; None where rounding needs none."""
        if self.cast.rounding != "stochastic":
            return None
        if self.last_step != self.clock.step:
            self.last_step, self.calls = self.clock.step, 0
        call = self.calls if training else -1
        self.calls += training
        return random_key(self.clock.seed, self.clock.step, call, self.name)


def random_key(seed: int, step: int, micro: int, name: str) -> int:
    """Return a 63-bit key that is a hash of where in the run a tensor is rounded.

    The format is left out on purpose: E0M7 and E1M6 round with the same bits.
    """
    text = f"{seed}/{step}/{micro}/{name}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
