"""The diagnostic ``grad-stiffness``: whether gradients are large where the grid is coarse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
import torch
from attrs.validators import ge
from torch import Tensor

from altcore.plugin import (
    early_and_late,
    hookimpl,
    interval_width_of,
    join_moments,
    moments,
    quantized_weights,
    setting,
)
from altcore_diagnostics.parameter_table import ParameterTable

if TYPE_CHECKING:
    from altcore.plugin import Run, Step


@attrs.define(eq=False)
class GradStiffness:
    """How gradients and updates compare with the grid interval's width at their weights.

    Measures, for each KIND of ``stored`` (weights that live on the grid) and ``view`` (float32
    masters that a product sees on it), with s the stiffness: the width of the grid interval that
    contains |w|, in the weight's units:

    - ``KIND_correlation``: Pearson's, of |g| with s over all elements; NaN if either is the
      same everywhere, as s is in fixed point;
    - ``KIND_ratio``: mean |g| / mean s;
    - ``KIND_below_share``: elements with |g| < s, what the original experiments counted. A
      gradient is not a step: no learning rate and no optimizer is in it;
    - ``KIND_update_below_share``: among elements with a proposed update u other than 0, those
      with |u| < s / 2, the update that the optimizer made, decay included, before stored weights
      go back on their grids. Away from binade edges such an update is lost under rounding to
      nearest. Not measured in a discarded step;
    - the same for one layer, as ``KIND_correlation/layer.name`` and so on, and with
      ``per_parameter`` for one parameter, as ``KIND_correlation/layer.name.weight``.

    Gradients are raw: unscaled, of all micro-batches, before any clipping. Weights and scales are
    those of the step's forward pass.
    """

    needs: ClassVar[tuple[str, ...]] = ("weights_before", "weights_proposed")
    interval: int = setting(50, help="steps between measurements", validator=ge(1))
    per_parameter: bool = setting(False, help="also measure each parameter of a layer by itself")

    @hookimpl
    @torch.no_grad()
    def post_backward(self, run: Run, step: Step) -> dict[str, Tensor]:
        """Compare the raw gradients, on the device."""
        table = ParameterTable(_finish, _join, per_parameter=self.per_parameter)
        for weight in quantized_weights(run):
            if weight.parameter.grad is None:
                continue
            size = weight.parameter.grad.detach().abs()
            width = interval_width_of(step, weight)
            below = torch.count_nonzero(size < width)
            table.add(weight.kind, weight.name, *comoments(size, width), below)
        return table.measures()

    @hookimpl
    @torch.no_grad()
    def post_step(self, run: Run, step: Step) -> dict[str, Tensor]:
        """Compare the proposed updates, on the device."""
        table = ParameterTable(
            lambda columns: {"update_below_share": columns[0] / columns[1]},
            per_parameter=self.per_parameter,
        )
        proposed = step.weights_proposed or {}
        for weight in quantized_weights(run, before_step=True):
            before = (step.weights_before or {}).get(weight.name)
            if before is None or weight.name not in proposed:
                continue
            update = (proposed[weight.name] - before).abs_()
            below = (update < interval_width_of(step, weight, before) / 2).logical_and_(update != 0)
            numbers = torch.count_nonzero(below), torch.count_nonzero(update)
            table.add(weight.kind, weight.name, *numbers)
        return table.measures()

    @hookimpl
    def findings(self, history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Say which share of the gradients is smaller than the grid's interval."""
        shares = {kind: f"{kind}_below_share" for kind in ("stored", "view")}
        return early_and_late(history, "gradients below the stiffness", shares)


def comoments(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """Return the moments of each, their sum of products of deviations, and their ends."""
    first, second = moments(x), moments(y)
    apart = (part.flatten().double() - own[1] for part, own in ((x, first), (y, second)))
    return first, second, torch.dot(*apart), *x.aminmax(), *y.aminmax()


def _join(rows: Tensor) -> Tensor:
    first, second = join_moments(rows[:, :3]), join_moments(rows[:, 3:6])
    apart = (rows[:, 1] - first[1]) * (rows[:, 4] - second[1])
    products = (rows[:, 6] + rows[:, 0] * apart).sum(0, keepdim=True)
    ends = [rows[:, i].amin(0) if i % 2 else rows[:, i].amax(0) for i in range(7, 11)]
    return torch.cat([first, second, products, torch.stack(ends), rows[:, 11:].sum(0)])


def _finish(columns: Tensor) -> Mapping[str, Tensor]:
    number, mean_x, squares_x, _, mean_y, squares_y, products = columns[:7]
    low_x, high_x, low_y, high_y, below = columns[7:]
    correlation = products / (squares_x.sqrt() * squares_y.sqrt())
    # What is the same everywhere may have a deviation that is a rounding error.
    varies = (low_x < high_x) & (low_y < high_y)
    return {
        "correlation": torch.where(varies, correlation, torch.nan),
        "ratio": mean_x / mean_y,
        "below_share": below / number,
    }
