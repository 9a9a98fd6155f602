"""The diagnostic ``grid-alignment``: how far weights are from the values that a format has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import torch
from attrs.validators import ge
from torch import Tensor

from altcore.plugin import (
    MeasureTable,
    early_and_late,
    hookimpl,
    interval_width_of,
    inverse_scale,
    join_moments,
    mean_and_std,
    moments,
    moments_without_zeros,
    nan_where_not_finite,
    nearest_error,
    quantized_weights,
    setting,
)

if TYPE_CHECKING:
    from altcore.plugin import Run, Step


@attrs.define(eq=False)
class GridAlignment:
    """Distance of each weight to the nearest value of its grid, and the share that is on it.

    Measures, for each KIND of ``stored`` (weights that live on the grid: all are on it, unless
    something else wrote to them) and ``view`` (float32 masters that a product sees on it):

    - ``KIND_ulp_mean``, ``KIND_ulp_std``, ``KIND_ulp_max``: |Q(w) - w| over the width of the grid
      interval that contains |w|, in ULPs: at most 1/2, but for weights beyond the largest value,
      formats with rounding boundaries of their own, and 16-bit weights whose type does not hold
      Q(w), which is rounded to it once more;
    - ``KIND_relative_mean``, ``KIND_relative_std``, ``KIND_relative_max``: |Q(w) - w| / |w|, over
      the weights other than 0; 1 if a weight is flushed to zero;
    - ``KIND_exact_share``, in 0..1: elements with Q(w) = w, to the last bit;
    - the same for one layer, as ``KIND_ulp_mean/layer.name`` and so on.

    Q rounds to nearest even at the weight's scale. Means and deviations (of the population) are
    over all elements, each counting once. Weights and scales are those of the step's forward
    pass. If a weight is not finite, the measures are NaN, but for the share: it is not on the
    grid.
    """

    interval: int = setting(50, help="steps between measurements", validator=ge(1))

    @hookimpl
    @torch.no_grad()
    def post_backward(self, run: Run, step: Step) -> dict[str, Tensor]:
        """Measure the weights of the step, on the device."""
        table = MeasureTable(_finish, _join)
        for weight in quantized_weights(run):
            w, fmt, scale = weight.parameter.detach(), weight.grid.format, weight.grid.scale
            error = nearest_error(w, fmt, inverse_scale(scale), scale).abs_()
            error.add_(nan_where_not_finite(w))
            ulps = error / interval_width_of(step, weight)
            is_other = w != 0  # than 0
            relative = (error / w.abs().add_(is_other.logical_not())).mul_(is_other)
            table.add(
                weight.kind,
                weight.layer,
                moments(ulps),
                moments_without_zeros(relative, torch.count_nonzero(is_other)),
                ulps.max(),
                relative.max(),
                error.numel() - torch.count_nonzero(error),
            )
        return table.measures()

    @hookimpl
    def findings(self, history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Say how far the weights are from their grid, early and late."""
        means = {f"{kind}, ULPs": f"{kind}_ulp_mean" for kind in ("stored", "view")}
        return early_and_late(history, "distance to the grid", means)


def _join(rows: Tensor) -> Tensor:
    return torch.cat(
        [
            join_moments(rows[:, :3]),
            join_moments(rows[:, 3:6]),
            rows[:, 6:8].amax(0),
            rows[:, 8:].sum(0),
        ]
    )


def _finish(columns: Tensor) -> Mapping[str, Tensor]:
    number, nonzero = columns[0], columns[3]
    ulp_max, relative_max, exact = columns[6:]
    measures = {}
    measures["ulp_mean"], measures["ulp_std"] = mean_and_std(*columns[:3])
    measures["relative_mean"], measures["relative_std"] = mean_and_std(*columns[3:6])
    measures["ulp_max"] = ulp_max
    measures["relative_max"] = torch.where(nonzero > 0, relative_max, torch.nan)
    return {**measures, "exact_share": exact / number}
