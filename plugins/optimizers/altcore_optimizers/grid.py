"""The optimizer ``grid``: moves weights by whole steps of the grid that they are on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import attrs
import torch
from attrs.validators import and_, ge, gt, le, lt
from torch import Tensor
from torch.nn import Parameter

from altcore.plugin import (
    Format,
    Rule,
    norm_of,
    on_grid,
    ordinal,
    round_to_grid,
    setting,
    table_format,
)
from altcore_optimizers.adam import adam_step
from altcore_optimizers.groups import decay_1d_setting, decay_groups

if TYPE_CHECKING:
    from altcore.plugin import WeightGrid

    GridOf = Callable[[Parameter], WeightGrid | None]

COUNTERS = ("updates", "flips")


@attrs.define(eq=False)
class Grid:
    """Settings of an optimizer whose updates are numbers of grid steps, called rungs.

    m <- beta · m + (1 - beta) · g; d = m / rms(m), or m itself without ``normalize``;
    u = -lr · (d + weight_decay · w), the update in units of the weight; n = u over the width of
    the grid's interval next to w in u's direction, rounded stochastically to a whole number and
    clipped to ± ``clip``. The weight moves by n values of its present grid: a stored weight to
    that value, a float32 master by as much as that moves the grid value that it is seen as (at
    the scale of the last forward). So a stored update is on the grid before it is stored, and for
    n of one rung its mean is u: no stall, whatever the learning rate. Beyond the largest value
    the grid goes on as the format would, for a stored weight's scale to follow.

    The format is asked for at each step, so that a change of recipe is followed; any format has
    such a grid. A parameter that is on none gets AdamW (``beta``, ``beta2``, ``eps`` and
    ``weight_decay``), bit for bit PyTorch's. Tensors of two or more dimensions decay, the others
    with ``decay_1d``. The random bits are a hash of ``seed``, the parameter's name and its number
    of steps.

    State of each parameter on a grid: ``momentum``; ``steps``; and for reports two int64 counts
    on the device, 0-dim, since the start: ``updates``, elements whose u was not zero, and
    ``flips``, those whose n was not.
    """

    beta: float = setting(0.9, help="decay rate of the momentum", validator=and_(ge(0), lt(1)))
    normalize: bool = setting(
        True, help="divide the momentum by its root mean square in the tensor"
    )
    clip: int = setting(10, help="most grid steps in one update", validator=and_(ge(1), le(1000)))
    seed: int = setting(0, help="decides the random bits of grid steps")
    weight_decay: float = setting(
        0.0,
        help="decay of tensors with two or more dimensions, per unit of learning rate",
        validator=and_(ge(0), lt(math.inf)),
    )
    decay_1d: bool = decay_1d_setting()
    beta2: float = setting(
        0.95,
        help="decay rate of the mean of squares, of what is on no grid",
        validator=and_(ge(0), lt(1)),
    )
    eps: float = setting(
        1e-8,
        help="added to the root of the second moment, of what is on no grid",
        validator=and_(gt(0), lt(math.inf)),
    )

    def build(
        self, named_parameters: Iterable[tuple[str, Parameter]], grid_of: GridOf
    ) -> torch.optim.Optimizer:
        """Return the optimizer, in the groups of `decay_groups`."""
        named = list(named_parameters)
        groups = decay_groups(named, self, "grid")
        defaults = {"lr": 0.0, "betas": (self.beta, self.beta2), "eps": self.eps}
        # The first name of a parameter that has several.
        names = {p: name for name, p in reversed(named)}
        return GridOptimizer(groups, defaults, self, names, grid_of)


class GridOptimizer(torch.optim.Optimizer):
    """Momentum in rungs; see `Grid`."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        defaults: dict[str, Any],
        settings: Grid,
        names: Mapping[Parameter, str],
        grid_of: GridOf,
    ) -> None:
        super().__init__(groups, defaults)
        self.settings, self.names, self.grid_of = settings, names, grid_of
        self._cached_tables: dict[tuple[Format, torch.dtype, torch.device], Tensor] = {}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make one update; there is no closure."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                grid = self.grid_of(p)
                if grid is None:
                    adam_step(p, p.grad, self.state[p], group)
                else:
                    self._climb(p, grid, group)

    def _climb(self, p: Parameter, grid: WeightGrid, group: dict[str, Any]) -> None:
        state = self.state[p]
        if "momentum" not in state:
            state |= {"momentum": torch.zeros_like(p), "steps": 0}
            state |= {k: torch.zeros((), dtype=torch.int64, device=p.device) for k in COUNTERS}
        state["steps"] += 1
        momentum = state["momentum"].lerp_(p.grad, 1 - group["betas"][0])
        direction = over_rms(momentum) if self.settings.normalize else momentum
        wanted = -group["lr"] * (direction + group["weight_decay"] * p)

        clip = self.settings.clip
        scale = 1.0 if grid.scale is None else grid.scale
        here = on_grid(p, grid.format, grid.scale)
        # What is not finite has no ordinal, and stays what it is below.
        index = ordinal(here, grid.format).clamp(min=0) + clip
        values = self._table(grid.format, here)
        beside = values[index + torch.where(wanted < 0, -1, 1)]
        width = (beside - values[index]).abs() * scale
        share = wanted / width
        key = random_key(self.settings.seed, self.names[p], state["steps"])
        rungs = round_to_grid(share, rungs_format(clip), Rule("stochastic"), key=key)
        there = values[index + rungs.nan_to_num(0.0).long()]
        moved = there * scale if grid.is_stored else p + (there - values[index]) * scale
        p.copy_(torch.where(torch.isfinite(p) & torch.isfinite(share), moved, p + wanted))
        state["updates"] += (wanted != 0).sum()
        state["flips"] += (rungs != 0).sum()

    def _table(self, fmt: Format, like: Tensor) -> Tensor:
        """The format's values and those beyond, on the device; made once."""
        key = fmt, like.dtype, like.device
        if key not in self._cached_tables:
            values = extended(fmt, self.settings.clip)
            self._cached_tables[key] = torch.tensor(values, dtype=like.dtype, device=like.device)
        return self._cached_tables[key]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned, counts as they were.

        PyTorch would make numbers of the parameter's type of them, which cannot count so far.
        """
        super().load_state_dict(state_dict)
        saved = [i for group in state_dict["param_groups"] for i in group["params"]]
        own = [p for group in self.param_groups for p in group["params"]]
        for i, p in zip(saved, own, strict=True):
            for key in COUNTERS:
                if key in state_dict["state"].get(i, {}):
                    self.state[p][key] = state_dict["state"][i][key].to(p.device, copy=True)


def over_rms(x: Tensor) -> Tensor:
    """Return ``x`` over its root mean square; zeros stay zeros."""
    rms = norm_of(x) / math.sqrt(x.numel())
    return x / torch.where(rms > 0, rms, 1.0)


@cache
def rungs_format(clip: int) -> Format:
    """Return the whole numbers from -clip to clip, as a format: what rounds and clips rungs."""
    return table_format(f"rungs to {clip}", [float(n) for n in range(-clip, clip + 1)])


def extended(fmt: Format, more: int) -> tuple[float, ...]:
    """Return a format's values, and ``more`` beyond each end, at the distance of the first."""
    v = fmt.values
    low, high = float(v[0] - fmt.beyond[0]), float(fmt.beyond[1] - v[-1])
    below = (v[0] - low * n for n in range(more, 0, -1))
    return (*below, *v, *(v[-1] + high * n for n in range(1, more + 1)))


def random_key(seed: int, name: str, step: int) -> int:
    """Return the 63-bit key of one update's random bits."""
    digest = hashlib.blake2b(f"{seed}/{name}/{step}/rungs".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
