"""The diagnostic ``ulp-stats``: how many grid steps an update moves each weight.

A ULP distance is a difference of positions in a format's own grid, at one scale; -0 and +0 are
one position. Weights that live on a grid (``stored_...``) and the quantized views of float32
master weights (``view_...``) are never put together: a stored weight that does not move has lost
its update, a view that does not move is only late.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
import torch
from attrs.validators import ge
from torch import Tensor
from torch.nn import functional

from altcore.plugin import (
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


@attrs.define(eq=False)
class UlpStats:
    """Mean, median and largest ULP distance of an update, and the share of weights at distance 0.

    Measures, for each KIND of ``stored`` and ``view`` that the recipe has, in ULPs:

    - ``KIND_mean``, ``KIND_median``, ``KIND_max`` over all elements of all quantized weights that
      are trained, each element counting once; the median is exact (of an even number, the mean of
      the two middle ones);
    - ``KIND_zero_share``, in 0..1: elements at distance 0 among *all* elements, those included
      whose proposed update was zero (the core's stall rates leave these out);
    - the same for one layer, as ``KIND_mean/layer.name`` and so on.

    Both sides of a distance are seen on the grid as it was before the step: a stored weight at its
    scale before the step, a view at the scale of the step's forward pass, rounded to nearest even.
    A change of a stored weight's scale is not a movement: where there was one, what the optimizer
    proposed is rounded to nearest even at the scale before. What passes the largest value counts
    as the largest. If a weight is not finite, its layer's measures and the aggregates are NaN.
    """

    needs: ClassVar[tuple[str, ...]] = ("weights_before", "weights_proposed")
    interval: int = setting(50, help="steps between measurements", validator=ge(1))

    @hookimpl
    @torch.no_grad()
    def post_step(self, run: Run, step: Step) -> dict[str, Tensor]:
        """Measure the update that was just made, on the device."""
        counts: dict[str, dict[str, Tensor]] = {"stored": {}, "view": {}}
        for weight in quantized_weights(run, before_step=True):
            name, parameter, grid = weight.name, weight.parameter, weight.grid
            before = (step.weights_before or {}).get(name)
            if before is None:
                continue
            after = parameter
            now = run.quantization.grid_of(parameter)
            proposed = (step.weights_proposed or {}).get(name)
            if grid.is_stored and now is not None and proposed is not None:
                after = torch.where(now.scale == grid.scale, parameter, proposed)
            found, layer = counts[weight.kind], weight.layer
            own = distance_counts(before, after, grid.format, grid.scale)
            found[layer] = _add(found[layer], own) if layer in found else own
        measures = {}
        for kind, layers in counts.items():
            if layers:
                total, *rest = layers.values()
                for other in rest:
                    total = _add(total, other)
                measures |= {f"{kind}_{key}": value for key, value in statistics(total).items()}
            for layer, own in layers.items():
                for key, value in statistics(own).items():
                    measures[f"{kind}_{key}/{layer}"] = value
        return measures

    @hookimpl
    def findings(self, history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Say how far updates move the weights, early and late; the worst layer moves least."""
        title, kinds = "movement of the weights", ("stored", "view")
        means = {f"{kind}, ULPs": f"{kind}_mean" for kind in kinds}
        unmoved = {f"{kind}, share at 0": f"{kind}_zero_share" for kind in kinds}
        rows = early_and_late(history, title, means, worst=min)
        return rows + early_and_late(history, title, unmoved)


def distance_counts(before: Tensor, after: Tensor, fmt: Format, scale: Tensor | None) -> Tensor:
    """Return how many elements moved by how many grid steps, int64.

    Entry 0 counts elements that are not finite, before or after, entry 1 + d those
    at distance d. ``scale``: that of the grid, 0-dim, None for 1. Its inverse brings the values
    onto the grid: exact for the powers of two of stored weights; for a view, an element within a
    float32 rounding error of a boundary may be seen on its other side.
    """
    first, last = (ordinal(on_grid(w.detach(), fmt, scale), fmt) for w in (before, after))
    # An infinity rounds to the largest value, but is not a weight that moved there.
    lost = torch.isnan(nan_where_not_finite(before).add_(nan_where_not_finite(after)))
    index = last.sub_(first).abs_().add_(1).masked_fill_(lost, 0).flatten()
    counts = torch.zeros(len(fmt.values) + 1, dtype=torch.int64, device=index.device)
    return counts.scatter_add_(0, index, torch.ones_like(index))


def statistics(counts: Tensor) -> dict[str, Tensor]:
    """Return mean, median, max and zero_share of what `distance_counts` counted, as 0-dim."""
    lost, moved = counts[0], counts[1:]
    total, below = moved.sum(), moved.cumsum(0)
    distance = torch.arange(len(moved), device=counts.device)
    # The ranks, from 1, of the two middle elements; of an odd number they are the same one.
    middle = torch.searchsorted(below, torch.stack([(total + 1) // 2, total // 2 + 1]))
    values = {
        "mean": (moved * distance).sum().double() / total,
        "median": middle.double().mean(),
        "max": torch.where(moved > 0, distance, 0).max().double(),
        "zero_share": moved[0].double() / total,
    }
    return {key: torch.where(lost > 0, torch.nan, value) for key, value in values.items()}


def _add(a: Tensor, b: Tensor) -> Tensor:
    """Add counts of formats whose grids may differ in length."""
    size = max(len(a), len(b))
    return functional.pad(a, (0, size - len(a))) + functional.pad(b, (0, size - len(b)))
