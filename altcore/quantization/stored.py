"""Stored weights and optimizer state: tensors that live on a format's grid.

A stored weight's scale is 1 where its cast has no scaling. Otherwise it is a power of two: the
smallest that holds its largest magnitude at the start, doubled on overflow until it holds, and
halved when the largest magnitude falls below a quarter of the format's maximum. With ``rms``
scaling the root mean square takes the place of the largest magnitude, and 1 that of the maximum.
All of it happens on the device; the scales travel to the host with the step's one read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from attrs import define, field
from torch import Tensor, nn

from altcore.numerics import amax, fake_round, root_mean_square, scale_of
from altcore.quantization.layers import ParameterSlot
from altcore.quantization.product import StraightThrough
from altcore.quantization.quantizer import Clock, random_key
from altcore.recipes import Cast

SMALLEST_SCALE = 2.0**-126
"""Below this a float32 scale has no exact inverse."""

STALL = ("updates", "stalled", "flips", "rescaled")
"""Columns of a stored weight's movement: elements whose proposed update was not zero, those of
them whose code stayed, codes that changed at the scale before, codes that a new scale moved."""


@define(eq=False)
class StoredWeight:
    """One parameter on its grid."""

    name: str
    layer: str
    slot: ParameterSlot
    cast: Cast
    clock: Clock
    on_change: Callable[[StoredWeight], None]
    """Called when something other than `store` changed the weight, before it is rounded again."""
    parameter: nn.Parameter = field(init=False)
    """What was in the slot when it was last put on its grid."""
    version: int | None = field(init=False)
    """Of the parameter then."""
    scale: Tensor = field(init=False)
    scale_before: Tensor = field(init=False)
    """The scale as of the step before: at which codes before and after are compared."""
    before: Tensor = field(init=False)
    """The grid values as of the last `store`: what the optimizer started from."""
    error: Tensor = field(init=False)
    """Relative root-mean-square error of the first encoding, 0-dim."""

    @torch.no_grad()
    def __attrs_post_init__(self) -> None:
        self.parameter = self.slot.parameter
        w = self.parameter.detach()
        self.scale = self.scale_before = self._fresh_scale(w)
        on_grid = self._round(w, self.scale)
        self.error = (on_grid - w).norm() / w.norm().clamp(min=1e-30)
        self._put(on_grid)

    def _put(self, on_grid: Tensor) -> None:
        self.parameter.detach().copy_(on_grid)
        self.before, self.version = on_grid, version_of(self.parameter)

    def is_current(self, weight: Tensor) -> bool:
        """Whether a layer's weight is what `store` left.

        By identity and version, and on a CPU, where looking costs no transfer, by value: writing to
        ``weight.data`` changes no version.
        """
        if weight is not self.parameter or version_of(weight) != self.version:
            return False
        return not weight.is_cpu or torch.equal(weight.detach(), self.before)

    def on_grid(self, weight: Tensor, *, is_told: bool = True) -> Tensor:
        """Return a layer's weight on the grid: itself, rounded again if somebody changed it.

        A parameter is rounded in place. Another tensor in its place (`torch.func.functional_call`
        puts it there) stays as it is; what is returned passes its gradient on.
        """
        if self.is_current(weight):
            return weight
        with torch.no_grad():
            scale, on_grid = self._found(weight.detach())
            is_same = torch.equal(on_grid, weight.detach())
        if not isinstance(weight, nn.Parameter):
            return weight if is_same else StraightThrough.apply(weight, on_grid, None)  # type: ignore[no-untyped-call] # torch leaves it untyped
        if is_told and not is_same:
            self.on_change(self)
        self.parameter, self.scale, self.scale_before = weight, scale, scale
        self._put(on_grid)
        return weight

    def _found(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scale of a weight that somebody else put there, and the weight on its grid.

        First come scales that the weight alone decides: replicas that get it from one of them
        agree, whatever they had before.
        """
        fresh = self._fresh_scale(w)
        near = () if self.cast.scaling.kind == "none" else (fresh, fresh * 2, fresh / 2)
        for scale in (*near, self.scale):
            on_grid = self._round(w, scale)
            if torch.equal(on_grid, w):
                return scale, on_grid
        return fresh, self._round(w, fresh)

    def _fresh_scale(self, w: Tensor) -> Tensor:
        if self.cast.scaling.kind == "none":
            return torch.ones((), dtype=torch.float32, device=w.device)
        # Zero-initialised tensors get their scale at the first nonzero update.
        size, top = _size(w, self.cast)
        return scale_of(size, self.cast.element, power_of_two=True, meets=top)[0]

    def _round(self, w: Tensor, scale: Tensor, overflow: str = "saturate") -> Tensor:
        key = None
        if self.cast.rounding == "stochastic":
            key = random_key(self.clock.seed, self.clock.step, 0, f"{self.name}/stored")
        return fake_round(
            w,
            self.cast.element,
            rounding=self.cast.rounding,
            overflow=overflow,
            r=1 / scale,
            s=scale,
            key=key,
        )

    @torch.no_grad()
    def store(self) -> Tensor:
        """Put the parameter, as the optimizer left it, back on its grid.

        Returns the counts of `STALL`, int64 (4,), on the device.
        """
        self.parameter = self.slot.parameter
        proposed, before = self.parameter.detach(), self.before
        largest, top = _size(proposed, self.cast)
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

        There rounding to nearest passes the largest value.
        """
        is_rms = self.cast.scaling.kind == "rms"
        return 2.0 if is_rms else float(self.cast.element.limits[1])

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a checkpoint needs."""
        return {"scale": self.scale.clone()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the scale; the parameter's values are the model's to restore."""
        self.scale = self.scale_before = state["scale"].to(self.parameter.device).clone()
        self.parameter = self.slot.parameter
        self.before, self.version = self.parameter.detach().clone(), version_of(self.parameter)


def version_of(t: Tensor) -> int | None:
    """How often a tensor was written to; None for one made in inference mode."""
    return None if t.is_inference() else t._version


def _size(x: Tensor, cast: Cast) -> tuple[Tensor, float]:
    """How large a tensor is, 0-dim, and what in the format's grid that is brought to."""
    if cast.scaling.kind == "rms":
        return root_mean_square(x), 1.0
    return amax(x), cast.element.max


@torch.no_grad()
def store_optimizer_state(
    optimizer: torch.optim.Optimizer,
    casts: Mapping[str, tuple[torch.nn.Parameter, Cast]],
    clock: Clock,
) -> list[str]:
    """Round the optimizer's moments of ``casts``' parameters to their formats.

    A moment is a floating-point state tensor of its parameter's shape. What is nonnegative as a
    whole (a second moment) and not zero must not become zero, or the next step divides by it: it is
    held at the smallest positive value.

    Returns the tensors that stay as the optimizer keeps them, described: those it quantizes itself,
    factors, or keeps as integers.
    """
    left = []
    for name, (parameter, cast) in casts.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(value, Tensor) or value.numel() <= 1 < parameter.numel():
                continue
            if not _is_moment(value, parameter):
                what = f"{type(value).__name__}, {value.dtype}, {list(value.shape)}"
                left.append(f"{key} of {name} ({what})")
                continue
            s: Tensor | None = None
            r: Tensor | None = None
            if cast.scaling.kind != "none":
                size, top = _size(value, cast)
                s, r = scale_of(
                    size, cast.element, power_of_two=cast.scaling.power_of_two, meets=top
                )
            noise = None
            if cast.rounding == "stochastic":
                noise = random_key(clock.seed, clock.step, 0, f"{name}/{key}")
            rounded = fake_round(
                value,
                cast.element,
                rounding=cast.rounding,
                overflow=cast.overflow,
                r=r,
                s=s,
                key=noise,
            )
            floor = cast.element.smallest * (1.0 if s is None else s)
            lost = (rounded == 0) & (value > 0) & (value.min() >= 0)
            value.copy_(torch.where(lost, floor, rounded))
    return left


def _is_moment(value: Tensor, parameter: nn.Parameter) -> bool:
    """Whether a state tensor holds a number for each of the parameter's."""
    is_plain = type(value) in (Tensor, nn.Parameter) and value.layout == torch.strided
    return is_plain and value.is_floating_point() and value.shape == parameter.shape
