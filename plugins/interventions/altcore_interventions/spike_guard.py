"""The intervention ``spike-guard``: keeps the batches of loss spikes out of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs
import torch
from attrs import field
from attrs.validators import ge, gt
from torch import Tensor

from altcore.plugin import BadInput, hookimpl, setting

if TYPE_CHECKING:
    from altcore.plugin import Run, Step

TINY = 1e-12
"""Added to the standard deviation: losses that are all the same have none."""


@attrs.define(eq=False)
class SpikeGuard:
    """Set the gradients of a step to zero when its loss is a spike.

    A spike is a finite loss (the mean over the micro-batches) more than ``threshold`` standard
    deviations above the mean of the last ``window`` losses that were finite and no spikes, once
    there are ``least`` of them. After ``most_consecutive`` spikes in a row the next loss is taken
    for what it is: a level, no spike. Losses that fall are never spikes.

    The loss is on the device when this must be decided, and a step has one host read, which comes
    later; so nothing is skipped: the decision stays on the device too, as the zero that the
    gradients are replaced by. An optimizer with momentum still makes the move that it has in
    store, and weight decay decays. The moments see a gradient of zero, not the spike's. The run
    tells of a spike by a warning, two steps later, when the number has come to the plugin; of
    those in its last two steps only ``spikes`` tells.

    Measures, each step (so that each is recorded): ``z``, the loss in standard deviations from
    that mean, in 1, NaN while there are too few; ``spikes``, how many there have been.
    """

    threshold: float = setting(
        6.0, help="standard deviations above the mean that are a spike", validator=gt(0)
    )
    window: int = setting(50, help="losses that mean and deviation are taken of", validator=ge(2))
    least: int = setting(20, help="losses before one is judged", validator=ge(2))
    most_consecutive: int = setting(5, help="spikes in a row, at most", validator=ge(1))
    name: str = field(init=False, default="spike-guard")
    losses: Tensor | None = field(init=False, default=None)
    """The window, newest first, and NaN if there was none yet; on the device."""
    counts: Tensor | None = field(init=False, default=None)
    """Spikes so far, and those in a row; int64 (2,) on the device."""
    total: Tensor | None = field(init=False, default=None)
    """Sum of the losses of this step's micro-batches."""
    is_spike: Tensor | None = field(init=False, default=None)
    told: int = field(init=False, default=0)
    """Spikes that the run was told of."""

    def __attrs_post_init__(self) -> None:
        if self.least > self.window:
            problem = f"{self.least} is more than window {self.window}"
            raise BadInput(problem, key="least")

    @hookimpl
    def pre_backward(self, step: Step) -> None:
        """Sum the losses of the micro-batches, each as often as it has the items of the first."""
        assert step.loss is not None
        loss = step.loss.detach().float() * (step.items[step.micro] / step.items[0])
        self.total = loss if step.micro == 0 or self.total is None else self.total + loss

    @hookimpl
    @torch.no_grad()
    def post_backward(self, step: Step) -> dict[str, Tensor]:
        """Judge the step's loss, and take it into the window."""
        assert self.total is not None
        loss = self.total / (sum(step.items) / step.items[0])
        if self.losses is None or self.counts is None:
            self.losses = torch.full_like(loss, torch.nan).repeat(self.window)
            self.counts = torch.zeros(2, dtype=torch.int64, device=loss.device)
        losses = self.losses.to(loss.device)
        total, row = self.counts.to(loss.device).unbind()
        has = ~torch.isnan(losses)
        count = has.sum()
        mean = torch.where(has, losses, 0.0).sum() / count
        variance = torch.where(has, losses - mean, 0.0).square().sum() / count
        z = torch.where(count >= self.least, (loss - mean) / (variance.sqrt() + TINY), torch.nan)
        is_finite = torch.isfinite(loss)
        self.is_spike = is_finite & (z > self.threshold) & (row < self.most_consecutive)
        row = torch.where(self.is_spike, row + 1, torch.where(is_finite, 0, row))
        self.counts = torch.stack([total + self.is_spike, row])
        taken = is_finite & ~self.is_spike
        self.losses = torch.where(taken, torch.cat([loss[None], losses[:-1]]), losses)
        return {"z": z, "spikes": self.counts[0]}

    @hookimpl
    @torch.no_grad()
    def pre_step(self, run: Run) -> None:
        """Replace the gradients of a spike by zero."""
        assert self.is_spike is not None
        for parameter in run.model.parameters():
            if parameter.grad is not None:
                parameter.grad.masked_fill_(self.is_spike, 0.0)

    @hookimpl
    def on_record(self, run: Run, metrics: Mapping[str, Any]) -> None:
        """Tell of a spike, when its number has come to the host."""
        count = metrics.get(f"{self.name}/spikes", 0)
        if count > self.told:
            self.told = count
            run.emit(
                "warning",
                message=f"{self.name}: the loss of step {metrics['step']}, {metrics['loss']:.4g}, "
                f"is {metrics[f'{self.name}/z']:.3g} standard deviations above the last ones: its "
                "gradients were set to zero",
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the window and the counts."""
        return {"losses": self.losses, "counts": self.counts, "told": self.told}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.losses, self.counts = state["losses"], state["counts"]
        self.told = state["told"]
