"""The intervention ``partition-clip``: clips weight gradients by what a layer's format holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import torch
from attrs.validators import and_, ge, gt, in_, le

from altcore import hookimpl, setting

if TYPE_CHECKING:
    from altcore import Format
    from altcore.recipe import Casts
    from altcore.state import Run, Step

E5M2_MAX = 57344.0
"""The largest value of OCP E5M2, at which the original threshold is ``base`` itself."""


@attrs.define(eq=False)
class PartitionClip:
    """Clip the weight gradients of layers whose casts overflow, each layer by its own threshold.

    Mode ``original`` is the threshold of the original experiments, ``base × max / 57344`` with
    ``max`` the largest value of the layer's format: elements of the gradient, as the optimizer
    would get it (in units of the loss by those of the weight), are clamped to ± the threshold in
    every step in which more than ``overflow_rate`` of what the layer's quantizers met overflowed.
    Two departures from those experiments: it runs before the optimizer (theirs ran after it, so
    did nothing), and it tests the real overflow of the casts (theirs was always 0).

    Where a scale follows the tensor's own largest magnitude nothing can overflow, so nothing is
    clipped; where that is so everywhere, the run is told once.
    """

    mode: str = setting(
        "original",
        help="how the threshold is made: original is base × format max / 57344",
        validator=in_(("original",)),
    )
    base: float = setting(1.0, help="threshold of a format whose max is 57344", validator=gt(0))
    overflow_rate: float = setting(
        0.01,
        help="share of a layer's values that overflow, above which its gradients are clipped",
        validator=and_(ge(0.0), le(1.0)),
    )

    @hookimpl
    def run_start(self, run: Run) -> None:
        """Say so where the recipe leaves this plugin nothing to do."""
        quantizers = run.quantization.quantizers
        if any(not q.cast.scaling.uses_amax for q in quantizers):
            return
        reason = (
            "every scale follows its tensor's largest magnitude, so that nothing can overflow"
            if quantizers
            else "the recipe quantizes no product and no gradient"
        )
        run.emit("warning", message=f"partition-clip will change nothing: {reason}")

    @hookimpl
    @torch.no_grad()
    def pre_step(self, run: Run, step: Step) -> None:
        """Clamp in place; whether a layer overflowed is decided on the device."""
        quantization = run.quantization
        rows: dict[str, list[int]] = {}
        for row, quantizer in enumerate(quantization.quantizers):
            if not quantizer.cast.scaling.uses_amax:
                rows.setdefault(quantizer.name.partition(":")[0], []).append(row)
        for layer, own in rows.items():
            fmt = format_of(quantization.plan[layer])
            if fmt is None:
                continue
            elements, overflow = quantization.counts[own].sum(0)[:2]
            is_clipped = overflow > self.overflow_rate * elements
            threshold = self.base * fmt.max / E5M2_MAX
            for parameter in run.model.get_submodule(layer).parameters(recurse=False):
                gradient = parameter.grad
                if gradient is not None and parameter.dim() >= 2:
                    clamped = gradient.clamp(-threshold, threshold)
                    gradient.copy_(torch.where(is_clipped, clamped, gradient))


def format_of(casts: Casts) -> Format | None:
    """Return the format of a layer's weight, else that of the first operand that has one."""
    weight = casts["weight@fwd"] or casts["stored_weight"]
    first = weight or next((cast for cast in casts.values() if cast is not None), None)
    return first.format if first else None
