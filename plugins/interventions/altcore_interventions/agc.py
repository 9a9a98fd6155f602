"""The intervention ``agc``: clips gradients by the size of the weights that they would move."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import torch
from attrs.validators import gt
from torch import Tensor, nn

from altcore.plugin import (
    has_transposed_weight,
    hookimpl,
    is_meant,
    nearest,
    norm_of,
    output_head,
    setting,
)

if TYPE_CHECKING:
    from altcore.plugin import Run

SMALLEST_NORM = 1e-6
"""The published code divides by no smaller norm of a gradient."""


@attrs.define(eq=False)
class Agc:
    """Adaptive gradient clipping (Brock, De, Smith and Simonyan 2021, arXiv:2102.06171, eq. 3).

    For each unit i of a parameter W with gradient G::

        G_i <- clipping · max(|W_i|, eps) / |G_i| · G_i    where |G_i| / max(|W_i|, eps) > clipping

    with Frobenius norms. A unit is an output of a layer: a row of a Linear's weight (a column of
    transformers' Conv1D, which is stored the other way round), a filter of a convolution, a row
    of an embedding; a tensor of fewer than two dimensions is one unit. The output head, with a
    weight that it shares, is left alone, as the paper advises, and so is what ``skip`` names. A
    gradient that is not finite stays as it is, for the engine to see.

    Under an optimizer that divides by the gradient's size (AdamW) it bounds what one step leaves
    in the moments, no more.
    """

    clipping: float = setting(
        0.01, help="largest norm of a unit's gradient, by that of its weights", validator=gt(0)
    )
    eps: float = setting(1e-3, help="smallest norm of a unit's weights", validator=gt(0))
    skip: tuple[str, ...] = setting(
        (), help="patterns of parameter names that are not clipped, besides the head's"
    )

    @hookimpl
    def run_start(self, run: Run) -> None:
        """Warn of a pattern that matches nothing: what it means to spare is clipped."""
        names = [name for name, _ in run.model.named_parameters()]
        for pattern in self.skip:
            if not any(is_meant(name, [pattern]) for name in names):
                meant = nearest(pattern, names)
                hint = f" (did you mean {meant}?)" if meant else ""
                message = f"agc.skip: {pattern!r} matches no parameter{hint}"
                run.emit("warning", message=message)

    @hookimpl
    @torch.no_grad()
    def pre_step(self, run: Run) -> None:
        """Clip in place, on the device."""
        head = output_head(run.model)
        own = {id(p) for p in head.parameters()} if head is not None else set()
        transposed = transposed_weights(run.model)
        for name, parameter in run.model.named_parameters():
            gradient = parameter.grad
            if gradient is None or id(parameter) in own or is_meant(name, self.skip):
                continue
            of_input = id(parameter) in transposed
            largest = unit_norms(parameter, of_input).clamp(min=self.eps) * self.clipping
            norms = unit_norms(gradient, of_input)
            factor = largest / norms.clamp(min=SMALLEST_NORM)
            gradient.mul_(torch.where((norms > largest) & norms.isfinite(), factor, 1.0))


def unit_norms(x: Tensor, last: bool = False) -> Tensor:
    """Return the norm of each unit, with its dimensions kept; units lie along the first or last."""
    if x.dim() < 2:
        return norm_of(x)
    return norm_of(x, 0 if last else tuple(range(1, x.dim())))


def transposed_weights(model: nn.Module) -> set[int]:
    """Return the ids of the parameters of layers whose weight is (in, out)."""
    layers = filter(has_transposed_weight, model.modules())
    return {id(p) for layer in layers for p in layer.parameters(recurse=False)}
