"""The diagnostic ``bit-stall``: updates that a format swallows, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
import torch
from attrs.validators import ge
from torch import Tensor

from altcore.plugin import (
    MeasureTable,
    QuantizedWeight,
    early_and_late,
    hookimpl,
    nan_where_not_finite,
    on_grid,
    ordinal,
    quantized_weights,
    setting,
)

if TYPE_CHECKING:
    from altcore.plugin import Format, Run, Step

CAUSES = ("no_signal", "cancelled", "schedule", "coarse", "weak_signal")


@attrs.define(eq=False)
class BitStall:
    """Stalled updates of stored weights by cause, and stalled views apart.

    A stored weight stalls when the optimizer's proposed update u is not 0, and its code stays.
    A view stalls when a float32 master moved and its quantized view did not: the update is not
    lost, only late. Frozen weights are left out. Measures, shares in 0..1:

    - ``stored_stall_share``: stalled elements among those with u other than 0;
    - ``stored_zero_update_share``: elements with u = 0 among all;
    - ``stored_cause_CAUSE``: the share of each cause among the stalled elements, which add up to
      1 (NaN if none stalled);
    - ``view_stall_share``: masters whose view stayed among those that moved, as the core counts
      them, with the random bits of the forward pass if there are any;
    - the same for one layer, as ``stored_stall_share/layer.name`` and so on.

    The cause is the first of these that holds. With u_decay = -lr · weight_decay · w, the part of
    u that decoupled weight decay makes, u_opt = u - u_decay, and h the distance from the weight
    to the rounding boundary in the direction of u:

    - ``no_signal``: u_opt = 0, to within a rounding error of the weight's own type;
    - ``cancelled``: |u_opt| >= h: the decay (or a tie) took the move back;
    - ``schedule``: |u_opt| · lr_max / lr >= h: it would move at the run's peak learning rate,
      lr_max = ``learning_rate``;
    - ``coarse``: lr_max < h: not even a full step of Adam, whose size is about lr, would move it;
    - ``weak_signal``: what is left: the optimizer asks for less than a full step.

    lr and weight_decay are those of the weight's parameter group. Assumed to be decoupled is
    the decay of every optimizer but those of ``torch.optim`` without AdamW, and but groups that
    say ``decoupled_weight_decay: False``; coupled decay is part of the gradient, and u_decay = 0.

    Codes are compared, and h is taken, on the grid before the step; if the scale changed, what
    was proposed is rounded to nearest even on it. Under rounding to nearest, boundaries are the
    format's own; under log-nearest, the geometric means of neighbours (next to 0, half the value).
    Under other roundings, stochastic above all, h is the distance to the next value, from which
    on a move is certain. Beyond the largest value there is none: h is infinite, and the cause
    coarse. If an update is not finite, the layer's stored measures and the aggregates are NaN.
    """

    needs: ClassVar[tuple[str, ...]] = ("weights_before", "weights_proposed")
    interval: int = setting(50, help="steps between measurements", validator=ge(1))

    @hookimpl
    @torch.no_grad()
    def post_step(self, run: Run, step: Step) -> dict[str, Tensor]:
        """Judge the update that was just made, on the device."""
        groups = {id(p): group for group in run.optimizer.param_groups for p in group["params"]}
        stored, views = MeasureTable(_finish), MeasureTable(lambda c: {"stall_share": c[1] / c[0]})
        proposed = step.weights_proposed or {}
        for weight in quantized_weights(run, before_step=True):
            before = (step.weights_before or {}).get(weight.name)
            if before is None or weight.name not in proposed or not weight.grid.is_stored:
                continue
            group = groups.get(id(weight.parameter), {})
            lr = float(group.get("lr", 0.0))
            rate = decay_rate(run.optimizer, group) * lr
            full = run.config.learning_rate
            update = proposed[weight.name] - before
            stalled = _after(run, weight, proposed[weight.name]) == before
            stalled.logical_and_(update != 0)
            h = boundary_distance(before, update > 0, weight.grid, _rounding(run, weight))
            causes = by_cause(stalled, update, -rate * before, before, h, lr, full)
            same = update.numel() - torch.count_nonzero(update)
            row = torch.stack([torch.full_like(same, update.numel()), same, *causes])
            # What is added is 0, or NaN.
            stored.add("stored", weight.layer, row + nan_where_not_finite(update).sum())
        moves = run.quantization.counters.view_moves
        if moves is not None:
            for layer, row in zip(
                run.quantization.counters.view_layers, moves.unbind(), strict=True
            ):
                views.add("view", layer, row)
        return stored.measures() | views.measures()

    @hookimpl
    def findings(self, history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Say which share of the updates moved nothing, early and late."""
        shares = {kind: f"{kind}_stall_share" for kind in ("stored", "view")}
        return early_and_late(history, "updates that moved nothing", shares)


def decay_rate(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> float:
    """Return the decoupled weight decay of a parameter group, per unit of learning rate."""
    of_torch = type(optimizer).__module__.startswith("torch.optim")
    is_decoupled = group.get(
        "decoupled_weight_decay", not of_torch or isinstance(optimizer, torch.optim.AdamW)
    )
    return float(group.get("weight_decay", 0.0)) if is_decoupled else 0.0


def by_cause(
    stalled: Tensor,
    update: Tensor,
    decay: Tensor,
    before: Tensor,
    h: Tensor,
    lr: float,
    lr_max: float,
) -> list[Tensor]:
    """Return how many elements stalled for each of `CAUSES`, 0-dim, in their order."""
    signal = (update - decay).abs_()
    # What AdamW makes of no gradient differs from the decay by the rounding of the weight.
    noise = torch.finfo(before.dtype).eps * before.abs()
    at_peak = signal * (lr_max / lr if lr else math.inf)
    counts, left = [torch.count_nonzero(stalled)], stalled
    for fails in (signal > noise, signal < h, at_peak < h, h <= lr_max):
        left = left.logical_and(fails)
        counts.append(torch.count_nonzero(left))
    return [*(more - fewer for more, fewer in pairwise(counts)), counts[-1]]


def boundary_distance(w: Tensor, upward: Tensor, grid: Any, rounding: str) -> Tensor:
    """Return how far each weight is from the boundary above or below it; infinite at the ends.

    ``w``: weights on the grid. ``rounding``: that of their cast.
    """
    far = distances(grid.format, rounding).to(w.device)
    index = ordinal(on_grid(w, grid.format, grid.scale), grid.format).clamp_(min=0)
    index.mul_(2).add_(upward)
    distance = far.index_select(0, index.flatten()).view(w.shape)
    return distance if grid.scale is None else distance.mul_(grid.scale)


@cache
def distances(fmt: Format, rounding: str) -> Tensor:
    """Return how far each value is from the boundary below and above it, one after the other."""
    values = torch.tensor(fmt.values, dtype=torch.float64)
    return (boundaries(fmt, rounding) - values).abs().t().flatten()


@cache
def boundaries(fmt: Format, rounding: str) -> Tensor:
    """Return where rounding leaves each of the format's values, downwards and upwards, (2, n).

    float64, unscaled. Under a rounding that is not to nearest: where it certainly does.
    """
    values = torch.tensor(fmt.values, dtype=torch.float64)
    below, above = values[:-1], values[1:]
    # A float format's are midpoints, and listing them as fractions takes a while.
    inner = below / 2 + above / 2
    if rounding.startswith("nearest") and fmt.precision is None:
        inner = torch.tensor([float(b) for b in fmt.boundaries], dtype=torch.float64)
    elif rounding == "log-nearest":
        roots = below.abs().sqrt() * above.abs().sqrt()
        inner = torch.where(below * above > 0, torch.copysign(roots, below), inner)
    end = torch.tensor([math.inf], dtype=torch.float64)
    if rounding.startswith("nearest") or rounding == "log-nearest":
        return torch.stack([torch.cat([-end, inner]), torch.cat([inner, end])])
    return torch.stack([torch.cat([-end, below]), torch.cat([above, end])])


def _after(run: Run, weight: QuantizedWeight, proposed: Tensor) -> Tensor:
    """Return the stored weight after the step as it is seen on the grid before it."""
    grid, now = weight.grid, run.quantization.grid_of(weight.parameter)
    at_old = on_grid(proposed, grid.format, grid.scale) * grid.scale
    after = weight.parameter.detach()
    return torch.where(now.scale == grid.scale, after, at_old.to(after.dtype))


def _rounding(run: Run, weight: QuantizedWeight) -> str:
    """Return the rounding of a stored weight's cast."""
    return str(run.quantization.stored[weight.name].cast.rounding)


def _finish(columns: Tensor) -> Mapping[str, Tensor]:
    number, same, causes = columns[0], columns[1], columns[2:]
    stalled = causes.sum(0)
    measures = {"stall_share": stalled / (number - same), "zero_update_share": same / number}
    shares = zip(CAUSES, causes / stalled, strict=True)
    return measures | {f"cause_{cause}": share for cause, share in shares}
