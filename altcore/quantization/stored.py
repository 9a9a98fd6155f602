"""Stored weights: parameters that live on a format's grid.

A stored weight's scale is 1 if its cast has no scaling. Otherwise it is a power of two: at first
that of a grid on which the weight is already, or the smallest that holds its largest magnitude;
doubled on overflow until it holds, and halved when the largest magnitude falls below a quarter of
the format's maximum. With ``rms`` scaling the root mean square takes the place of the largest
magnitude, and 1 that of the maximum.
All of it happens on the device; the scales travel to the host with the step's one read.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from attrs import define, field
from torch import Tensor, nn

from altcore.numerics import amax, fake_round, root_mean_square, scale_of
from altcore.quantization.checks import check_whole
from altcore.quantization.context import Context
from altcore.quantization.discovery import ParameterSlot
from altcore.quantization.product import StraightThrough
from altcore.quantization.quantizer import random_key
from altcore.quantization.rules import rule_of
from altcore.recipes import Cast

MOST_NAMED = 3
"""Of changed weights that warnings name: a loop that never calls `store` changes them all."""
SMALLEST_SCALE = 2.0**-126
"""Below this a float32 scale has no exact inverse."""
NEAR = (1.0, 2.0, 4.0, 8.0, 0.5)
"""Scales of a weight that was stored, in fresh ones of it: `StoredWeight.store` halves a scale
below a quarter of the format's maximum, and a coarse format rounds that down."""

MOVES = ("updates", "stalled", "flips", "rescaled")
"""Columns of a stored weight's movement: elements whose proposed update was not zero, those of
them whose code stayed, codes that changed at the scale before, codes that a new scale moved."""


@define(eq=False)
class StoredWeight:
    """One parameter on its grid."""

    name: str
    """The parameter's full name."""
    layer: str
    """The layer's name."""
    slot: ParameterSlot
    cast: Cast
    """Format, scaling and rounding; it saturates."""
    context: Context
    parameter: nn.Parameter = field(init=False)
    """The one in the slot when it was last put on its grid."""
    version: int | None = field(init=False)
    """Of the parameter then."""
    scale: Tensor = field(init=False)
    """The current scale, float32, 0-dim."""
    scale_before: Tensor = field(init=False)
    """The previous step's scale. Codes before and after the update are compared at this scale."""
    before: Tensor = field(init=False)
    """The grid values as of the last `store`, from which the optimizer started: the parameter's
    shape and dtype."""
    error: Tensor = field(init=False)
    """Relative root-mean-square error of the first encoding, 0-dim."""

    @torch.no_grad()
    def __attrs_post_init__(self) -> None:
        self.parameter = self.slot.parameter
        w = self.parameter.detach()
        scale, on_grid = self._fit(w)
        self.scale = self.scale_before = scale
        wide = torch.promote_types(w.dtype, torch.float32)  # 1e-30 is 0 in float16
        self.error = (on_grid - w).to(wide).norm() / w.to(wide).norm().clamp(min=1e-30)
        self._put(on_grid)

    def _put(self, on_grid: Tensor) -> None:
        self.parameter.detach().copy_(on_grid)
        self.before, self.version = on_grid, version_of(self.parameter)

    def is_current(self, weight: Tensor) -> bool:
        """Whether a layer's weight is as `store` left it.

        By identity and version, and on a CPU, where looking costs no transfer, by value: writing to
        ``weight.data`` changes no version.
        """
        if weight is not self.parameter or version_of(weight) != self.version:
            return False
        return not weight.is_cpu or torch.equal(weight.detach(), self.before)

    def on_grid(self, weight: Tensor, *, is_told: bool = True) -> tuple[Tensor, Tensor]:
        """Return a layer's weight on the grid, itself or rounded again, and the grid's scale.

        A parameter is rounded in place. Another tensor in its place (`torch.func.functional_call`
        puts it there) stays as it is; the returned one passes its gradient on.
        """
        if self.is_current(weight):
            return weight, self.scale
        scale, on_grid = self.as_seen(weight)
        is_same = bool(((on_grid == weight) | weight.isnan()).all())  # NaN stays NaN
        if not isinstance(weight, nn.Parameter):
            if not is_same:
                weight = StraightThrough.apply(weight, on_grid, None)  # type: ignore[no-untyped-call] # torch leaves it untyped
            return weight, scale
        # One that is not finite has lost its scale, and nobody changed it.
        if is_told and not is_same and bool(weight.isfinite().all()):
            _warn_of_change(self)
        self.parameter, self.scale, self.scale_before = weight, scale, scale
        self._put(on_grid)
        return weight, scale

    @torch.no_grad()
    def as_seen(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scale of a layer's weight and the weight on its grid, as products see it."""
        w = weight.detach()
        return (self.scale, w) if self.is_current(weight) else self._fit(w, self.scale)

    def _fit(self, w: Tensor, *known: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scale of a weight that somebody else put there, and the weight on its grid.

        Values that are on a grid stay. First come scales that the weight alone decides: replicas
        that get it from one of them agree, whatever they had before, their ``known`` scales.
        """
        fresh = self._fresh_scale(w)
        near = () if self.cast.scaling.kind == "none" else [fresh * power for power in NEAR]
        for scale in (*near, *known):
            on_grid = self._round(w, scale)
            if torch.equal(on_grid, w):
                return scale, on_grid
        return fresh, self._round(w, fresh)

    def _fresh_scale(self, w: Tensor) -> Tensor:
        if self.cast.scaling.kind == "none":
            return torch.ones((), dtype=torch.float32, device=w.device)
        # Zero-initialised tensors get their scale at the first nonzero update.
        size, top = size_of(w, self.cast)
        return scale_of(size, self.cast.element, power_of_two=True, meets=top)[0]

    def _round(self, w: Tensor, scale: Tensor) -> Tensor:
        key = None
        if self.cast.rounding == "stochastic":
            key = random_key(
                self.context.clock.seed, self.context.clock.step, 0, f"{self.name}/stored"
            )
        return fake_round(
            w,
            self.cast.element,
            rule_of(self.cast),
            r=1 / scale,
            s=scale,
            key=key,
        )

    @torch.no_grad()
    def store(self) -> Tensor:
        """Put the parameter, as the optimizer left it, back on its grid.

        Returns the counts of `MOVES`, int64 (4,), on the device.
        """
        self.parameter = self.slot.parameter
        proposed, before = self.parameter.detach(), self.before
        largest, top = size_of(proposed, self.cast)
        first = amax(before) == 0
        scale = torch.where(first, self._fresh_scale(proposed), self.scale)
        at_old = self._round(proposed, scale)
        smaller = (largest < top / 4 * scale) & (largest > 0) & (scale > SMALLEST_SCALE)
        new = torch.where(smaller, scale / 2, scale)
        new = torch.where(largest > self._limit() * scale, self._fresh_scale(proposed), new)
        if self.cast.scaling.kind == "none":
            new = scale
        # Only a new scale needs a second rounding. Where asking would be a host read, it is
        # always computed.
        if new.device.type == "cpu" and bool(new == scale):
            on_grid = at_old
        else:
            on_grid = torch.where(new == scale, at_old, self._round(proposed, new))
        updated = proposed != before
        flipped = at_old != before
        counts = torch.stack(
            [
                torch.count_nonzero(updated),
                torch.count_nonzero(updated & ~flipped),
                torch.count_nonzero(flipped),
                torch.count_nonzero(on_grid != at_old),
            ]
        )
        self.scale_before, self.scale = scale, new
        self._put(on_grid)
        return counts

    def _limit(self) -> float:
        """Above this, times the scale, a larger scale is needed.

        There rounding to nearest passes the largest value of a sign: that whose side is shorter.
        """
        if self.cast.scaling.kind == "rms":
            return 2.0
        fmt = self.cast.element
        low, high = fmt.limits
        return float(min(-low, high) if fmt.signed else high)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state for a checkpoint."""
        return {"scale": self.scale.clone()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the scale; the parameter's values are the model's to restore."""
        self.scale = self.scale_before = state["scale"].to(self.parameter.device).clone()
        self.parameter = self.slot.parameter
        self.before, self.version = self.parameter.detach().clone(), version_of(self.parameter)


def store_weights(stored: Iterable[StoredWeight]) -> Tensor:
    """Put weights, as the optimizer left them, back on their grids.

    Returns:
        The counts of `MOVES`, int64 (weights, 4), on the device.

    Raises:
        BadInput: if the model was sharded.
    """
    weights = list(stored)
    for weight in weights:
        check_whole(weight.layer, weight.slot.module, weight.slot.name, "stored_weight")
    return torch.stack([weight.store() for weight in weights])


def _warn_of_change(stored: StoredWeight) -> None:
    """Warn of a weight that something other than `StoredWeight.store` changed."""
    changed, context = stored.context.changed_weights, stored.context
    changed.add(stored.name)
    if len(changed) > MOST_NAMED:
        context.warn("more stored weights were changed in the same way, and rounded again")
        return
    context.warn(
        f"stored weight {stored.name} was changed by something other than q.store, and was "
        "rounded to its grid again before it was used. After an optimizer's step call "
        "q.store(optimizer), or give quantize_model the optimizer; after another change (an "
        "average of weights, a resize) nothing more is needed"
    )


def version_of(t: Tensor) -> int | None:
    """How often a tensor was written to; None for one made in inference mode."""
    return None if t.is_inference() else t._version


def size_of(x: Tensor, cast: Cast) -> tuple[Tensor, float]:
    """Return a tensor's size, 0-dim, and the number that a fresh scale brings it to."""
    if cast.scaling.kind == "rms":
        return root_mean_square(x), 1.0
    return amax(x), cast.element.max
