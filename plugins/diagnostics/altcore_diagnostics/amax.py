"""The diagnostic ``amax``: the largest magnitudes, and how well scales fit them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import attrs
import torch
from attrs.validators import ge
from torch import Tensor

from altcore.plugin import MeasureTable, active_quantizers, amax, hookimpl, last_input, setting

if TYPE_CHECKING:
    from altcore.plugin import Run, Step


@attrs.define(eq=False)
class Amax:
    """The largest magnitude of every quantized tensor, and the share of the range that it uses.

    Measures, for each OPERAND (``activation@fwd`` and so on), of the last micro-batch:

    - ``OPERAND_amax``: the tensor's largest magnitude; NaN if the tensor has one. Weights,
      activations and gradients of outputs are looked at before they are quantized; other operands
      (weight gradients, attention) are known only if the scale is made of amax itself: by
      delayed scaling, or by exact ``tensor`` scaling, where it is the scale times the format's
      largest value, exact to a rounding error. After a Hadamard transform it is not measured;
    - ``OPERAND_range_share``: amax / (largest value · scale), where the scale does not come from
      the tensor's own amax: delayed scaling, none, rms, a quantile, a margin below 1. Above 1
      values are clipped, well below 1 the format's upper binades lie idle. Left out elsewhere,
      and where blocks or channels have scales of their own;
    - ``OPERAND_history_length``: how many steps the amax history of delayed scaling holds, out of
      the recipe's ``history``; an amax of 0 is not counted;
    - the same for one layer, as ``OPERAND_amax/layer.name`` and so on.

    As a whole, amax and range share are the largest over the layers, and the history's length is
    the smallest. Weights that are stored on the grid already are not quantized again.
    """

    needs: ClassVar[tuple[str, ...]] = ("activations", "output_gradients")
    interval: int = setting(50, help="steps between measurements", validator=ge(1))

    @hookimpl
    @torch.no_grad()
    def post_backward(self, run: Run, step: Step) -> dict[str, Tensor]:
        """Look at what was quantized in the step, on the device."""
        tables = {
            "amax": MeasureTable(lambda c: {"amax": c[0]}, _largest),
            "range_share": MeasureTable(lambda c: {"range_share": c[0]}, _largest),
            "history_length": MeasureTable(lambda c: {"history_length": c[0].long()}, _smallest),
        }
        for _, quantizer in active_quantizers(run):
            layer, operand = quantizer.site.layer, quantizer.site.operand
            largest = largest_of(last_input(run, step, quantizer), quantizer)
            if quantizer.history is not None:
                held = (quantizer.history > 0).sum()
                tables["history_length"].add(operand, layer, held)
            if largest is None:
                continue
            tables["amax"].add(operand, layer, largest)
            share = range_share(largest, quantizer)
            if share is not None:
                tables["range_share"].add(operand, layer, share)
        return {k: v for table in tables.values() for k, v in table.measures().items()}


def largest_of(x: Tensor | None, quantizer: Any) -> Tensor | None:
    """Return the largest magnitude of what was quantized last, 0-dim; None if it is not known."""
    scaling, scale = quantizer.cast.scaling, quantizer.last_scale
    if x is not None:
        return amax(x)
    if scaling.kind == "delayed" and quantizer.history is not None:
        return quantizer.history[0]
    is_exact = scaling.kind == "tensor" and scaling.quantile in (None, 1)
    if not is_exact or scaling.power_of_two or scale is None or quantizer.cast.hadamard:
        return None
    return scale * (quantizer.cast.element.max / scaling.margin)


def range_share(largest: Tensor, quantizer: Any) -> Tensor | None:
    """Return amax over what the format holds at the quantizer's scale; None if it is amax's."""
    cast, scale = quantizer.cast, quantizer.last_scale
    if cast.blocks is not None or cast.uses_amax:
        return None
    if cast.scaling.kind == "none":
        return largest.double() / cast.element.max
    if scale is None or scale.ndim > 0:
        return None
    return largest.double() / (scale.double() * cast.element.max)


def _largest(rows: Tensor) -> Tensor:
    return rows.amax(0)


def _smallest(rows: Tensor) -> Tensor:
    return rows.amin(0)
