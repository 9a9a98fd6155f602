"""The diagnostic ``noise-floor``: whether gradients still stand out of the quantization noise."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import attrs
import torch
from attrs.validators import ge
from torch import Tensor

from altcore.plugin import hookimpl, setting
from altcore_diagnostics.shadow_gradients import (
    LayerSums,
    Watch,
    is_quantized,
    join,
    layer_sums,
    least,
    mean,
    own_forward,
)

if TYPE_CHECKING:
    from altcore.plugin import Run, Step


@attrs.define(eq=False)
class NoiseFloor:
    """The norm of each layer's gradient against √3 times its quantization error.

    After Chmiel et al., "FP4 All the Way" (arXiv 2505.19115): training gets less effective if
    the gradient's norm falls below about √3 times the quantization noise. With dW_q the weight
    gradient of the last micro-batch under the run's recipe, and dW_ref that of the same weights
    and batch with every product in float32, computed anew in a probe (as dW_q is, unless the step's
    own gradient is the same):

    - ``ratio/layer.name``: ‖dW_ref‖ / (√3 · ‖dW_q − dW_ref‖), Frobenius norms; below 1 the layer is
      below the floor. Infinite if the two are equal;
    - ``ratio``: the same of all layers' gradients taken as one vector;
    - ``ratio_min``: the smallest ratio of a layer;
    - ``below_share``: layers with a ratio below 1 among all that have one, in 0..1.

    Layers are all that own a trained parameter of two or more dimensions, quantized or not (errors
    reach both); a tied parameter counts in the first layer that owns it. A layer without any
    gradient in both (0 / 0) has the ratio NaN and is left out of the other measures; if a
    gradient is not finite they are NaN. The error is that of the products, and of what their
    operands went through; stored weights are on their grid in both gradients. In a run without
    quantization there is no measure.
    """

    interval: int = setting(50, help="steps between measurements", validator=ge(1))

    @hookimpl
    def watch_forward(self, run: Run, step: Step) -> AbstractContextManager[None] | None:
        """Join those who look at the step's own forward pass."""
        return own_forward(run, step, join(step, self, Watch)) if is_quantized(run) else None

    @hookimpl
    def post_backward(self, run: Run, step: Step) -> dict[str, Tensor] | None:
        """Compare the gradients of this step's batch, before the weights move."""
        if not is_quantized(run):
            return None
        sums = layer_sums(run, step)
        return None if sums is None else floor_measures(sums)


def floor_measures(sums: LayerSums) -> dict[str, Tensor]:
    """Return the measures, 0-dim, of what `layer_sums` found."""
    ratio = _ratio(sums.exact, sums.error)
    known = ~((sums.exact == 0) & (sums.error == 0))
    below = torch.where(torch.isnan(ratio), torch.nan, (ratio < 1).double())
    measures = {
        "ratio": _ratio(sums.exact.sum(), sums.error.sum()),
        "ratio_min": least(ratio, known),
        "below_share": mean(below, known),
    }
    return measures | {f"ratio/{n}": r for n, r in zip(sums.layers, ratio, strict=True)}


def _ratio(signal: Tensor, noise: Tensor) -> Tensor:
    return (signal / noise).sqrt() / math.sqrt(3)
