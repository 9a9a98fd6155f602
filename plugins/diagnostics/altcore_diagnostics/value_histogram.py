"""The diagnostic ``value-histogram``: where tensors lie among the values of their format."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
import torch
from attrs.validators import ge
from torch import Tensor

from altcore.plugin import (
    active_quantizers,
    count_magnitudes,
    hookimpl,
    inverse_scale,
    last_input,
    quantized_weights,
    setting,
)

if TYPE_CHECKING:
    from altcore.plugin import Format, Run, Step

BINADES = 60
"""Powers of two that a histogram spans, with two bins each."""
ABOVE = 2
"""Binades above the format's largest value, where a tensor is scaled."""
TOP_UNSCALED = 12
"""The exponent at which the histogram of an unscaled tensor ends."""


@attrs.define(eq=False)
class ValueHistogram:
    """Histograms of magnitudes over their scale: in the units in which a format's values are given.

    Measures, for ``stored_weight`` and for each quantized OPERAND (``activation@fwd`` and so on;
    if one rounding serves two operands it is the first's), by the name of its FORMAT, over all
    elements of all layers:

    - ``OPERAND_FORMAT_histogram``: 123 shares of the finite elements. First zeros, then what is
      below the bins, 120 bins, and what is above them. There are two bins for each power of two:
      from 2^e to below 1.5 · 2^e, and from there to below 2^(e+1);
    - ``OPERAND_FORMAT_low``: the exponent e of the first bin.

    Tensors are those of the last micro-batch, before they are rounded; stored weights are on their
    grid. Weights with a scale for each block or channel are called ``weight``, in the format of
    their elements. Activations and gradients with such scales are left out, and so is all that a
    Hadamard transform changes: what becomes of these before the rounding is not at hand.
    """

    needs: ClassVar[tuple[str, ...]] = ("activations", "output_gradients")
    interval: int = setting(50, help="steps between measurements", validator=ge(1))

    @hookimpl
    @torch.no_grad()
    def post_backward(self, run: Run, step: Step) -> dict[str, Any]:
        """Count the tensors of the step, on the device."""
        counts: dict[tuple[str, str], Tensor] = {}
        lows: dict[tuple[str, str], int] = {}

        def add(operand: str, fmt: Format, x: Tensor, scale: Tensor | None) -> None:
            key = operand, fmt.name
            lows.setdefault(key, lowest(fmt, is_scaled=scale is not None))
            own = count_magnitudes(x, inverse_scale(scale))
            counts[key] = counts[key] + own if key in counts else own

        for weight in quantized_weights(run):
            scale = weight.grid.scale
            role = "stored_weight" if weight.kind == "stored" else "weight"
            if scale is not None and scale.ndim > 0:
                scaled = weight.parameter * inverse_scale(scale)
                add(role, weight.grid.format, scaled, scale.new_ones(()))
            elif weight.kind == "stored":
                add(role, weight.grid.format, weight.parameter, scale)
        for _, quantizer in active_quantizers(run):
            x, cast = last_input(run, step, quantizer), quantizer.cast
            scale, is_scaled = quantizer.last_scale, cast.scaling.kind != "none"
            if x is None or cast.blocks is not None:
                continue
            if is_scaled and (scale is None or scale.ndim > 0):
                continue
            add(quantizer.site.operand, cast.element, x, scale if is_scaled else None)
        measures: dict[str, Any] = {}
        for (operand, name), found in counts.items():
            low = lows[operand, name]
            measures[f"{operand}_{name}_histogram"] = shares(found, low)
            measures[f"{operand}_{name}_low"] = low
        return measures


def lowest(fmt: Format, *, is_scaled: bool) -> int:
    """Return the exponent of the first bin."""
    top = math.frexp(fmt.max)[1] + ABOVE if is_scaled else TOP_UNSCALED
    return max(-126, min(127, top) - BINADES)


def shares(counts: Tensor, low: int) -> Tensor:
    """Return the histogram of what `count_magnitudes` counted, float64."""
    first, finite = 2 * (low + 127), counts[:-2]
    end = first + 2 * BINADES
    parts = [finite[:1], finite[1:first].sum()[None], finite[first:end], finite[end:].sum()[None]]
    return torch.cat(parts) / finite.sum()
