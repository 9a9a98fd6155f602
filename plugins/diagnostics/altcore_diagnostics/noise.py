"""The diagnostic ``noise``: how much of the loss and the gradients is noise, and how fast it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs
import torch
from attrs import field
from attrs.validators import and_, ge, gt, le, optional
from torch import Tensor, nn

from altcore.plugin import BadInput, hookimpl, setting
from altcore_diagnostics.analysis.ewma import ALPHA, residuals
from altcore_diagnostics.analysis.spectrum import HIGH, LOW, psd_tail, total_power

if TYPE_CHECKING:
    from altcore.plugin import Run, Step

EPOCHS = 2
"""Between measurements, if the workload counts epochs."""
STEPS = 1000
"""Between measurements, if it does not."""


def _band(plugin: Noise, _: attrs.Attribute[Any], ends: tuple[float, ...]) -> None:
    if len(ends) != 2 or not 0 <= ends[0] < ends[1] <= 0.5:
        raise BadInput(f"{list(ends)} are not two rising frequencies in 0..0.5")


@attrs.define(eq=False)
class Noise:
    """The spectrum of the training loss, and the variance of loss and gradient about their trend.

    Each measurement is of the steps since the last one:

    - ``psd_tail``: power of the losses at ``high_band`` over that at ``low_band`` (plus 1e-10), in
      cycles a step, of the spectrum under a Hann window after the mean is removed. White noise
      gives about 1 if the steps are many, slower noise less; below the low band lies the trend.
      It is left out if the steps are so few that a band has no frequency;
    - ``total_power``: all power of that spectrum, the trend's included, in the loss's unit squared;
    - ``residual_power``: the mean square of what the losses lie off their exponentially weighted
      mean of the steps before (``alpha`` is the weight of the newest);
    - ``gradient_variance``: the exponentially weighted mean of ‖g − ḡ‖², with g the raw gradient of
      a step and ḡ the weighted mean of those before: about the trace of the gradient's covariance,
      as long as its mean changes slowly. It starts at 0, in the first step, and remembers earlier
      measurements.

    The losses are those of metrics.jsonl. Losses that are not finite are left out, as are the
    gradients of discarded steps. Of fewer than four losses there is no spectrum.

    It sees every step, so every step is recorded (as with ``log_interval`` 1), and reads the device
    at each measurement. A copy of the gradients is kept, in checkpoints too, and another one is
    made in each step.
    """

    report_interval: int | None = setting(
        None,
        help="steps between measurements; null for 2 epochs, or 1000 steps if there are no epochs",
        validator=optional(ge(1)),
        counts_steps=True,
    )
    alpha: float = setting(
        ALPHA,
        help="weight of the newest step in exponentially weighted means",
        validator=and_(gt(0), le(1)),
    )
    low_band: tuple[float, ...] = setting(
        LOW, help="frequencies that psd_tail compares with, ends included", validator=_band
    )
    high_band: tuple[float, ...] = setting(
        HIGH, help="frequencies of psd_tail, ends included", validator=_band
    )

    losses: list[Tensor] = field(init=False, factory=list)
    """Of the steps since the last measurement, on the device."""
    loss_mean: float | None = field(init=False, default=None)
    """The weighted mean of the losses before these."""
    means: dict[str, Tensor] = field(init=False, factory=dict)
    """The weighted mean of each parameter's gradient."""
    variance: Tensor | None = field(init=False, default=None)
    """The weighted mean of the squared distance from them, 0-dim."""
    now: dict[str, Tensor] = field(init=False, factory=dict)
    """Those of this step's gradients; a first gradient is its own mean, unless it is discarded."""
    off: list[Tensor] = field(init=False, factory=list)
    """How far the gradients of this step are from them."""
    reported: int = field(init=False, default=0)
    """The step of the last measurement."""

    @hookimpl
    def is_due(self) -> bool:
        """Look at every step."""
        return True

    @hookimpl
    @torch.no_grad()
    def post_backward(self, run: Run, step: Step) -> None:
        """Keep the loss, and how far the gradients are from their mean."""
        if step.mean_loss is not None:
            self.losses.append(step.mean_loss.double())
        gradients = _with_gradient(run.model)
        self.now = {}
        for name, gradient in gradients.items():
            mean = self.means.get(name)
            self.now[name] = gradient.clone() if mean is None else mean
        self.off = []
        if gradients:
            self.off = list(torch._foreach_sub(list(gradients.values()), list(self.now.values())))

    @hookimpl
    @torch.no_grad()
    def post_step(self, run: Run, step: Step) -> dict[str, Any] | None:
        """Take in the gradients of a step that was not discarded; measure if it is time."""
        if self.off:
            squares = torch.stack(torch._foreach_norm(self.off)).double().square().sum()
            before = torch.zeros_like(squares) if self.variance is None else self.variance
            self.variance = torch.lerp(before, squares, self.alpha)
            torch._foreach_add_(list(self.now.values()), self.off, alpha=self.alpha)
            self.means |= self.now
            self.off = []
        interval = self._interval(run)
        if step.index // interval == self.reported // interval and step.index > 1:
            return None
        measures: dict[str, Any] = {"gradient_variance": self.variance}
        if step.index >= interval:
            measures |= self._of_losses()
            self.reported = step.index
        return measures

    def _interval(self, run: Run) -> int:
        if self.report_interval is not None:
            return self.report_interval
        return STEPS if run.epoch is None else round(EPOCHS * run.epoch.steps) or 1

    def _of_losses(self) -> dict[str, float | None]:
        """Measure the losses since the last measurement, and forget them."""
        seen = torch.stack(self.losses).cpu().numpy().tolist() if self.losses else []
        finite = [loss for loss in seen if math.isfinite(loss)]
        self.losses = []
        errors, self.loss_mean = residuals(finite, self.loss_mean, self.alpha)
        low, high = self.low_band, self.high_band
        found = {
            "psd_tail": psd_tail(finite, (low[0], low[1]), (high[0], high[1])),
            "total_power": total_power(finite),
            "residual_power": sum(e * e for e in errors) / len(errors) if errors else math.nan,
        }
        return {name: None if math.isnan(x) else x for name, x in found.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the losses and means so far."""
        return {
            "losses": torch.stack(self.losses) if self.losses else None,
            "loss_mean": self.loss_mean,
            "means": self.means,
            "variance": self.variance,
            "reported": self.reported,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.losses = [] if state["losses"] is None else list(state["losses"])
        self.means = dict(state["means"])
        self.loss_mean, self.variance = state["loss_mean"], state["variance"]
        self.reported = state["reported"]


def _with_gradient(model: nn.Module) -> dict[str, Tensor]:
    """Return the gradients that there are, float32 or wider, by parameter."""
    named = {n: p.grad.detach() for n, p in model.named_parameters() if p.grad is not None}
    return {n: g.to(torch.promote_types(g.dtype, torch.float32)) for n, g in named.items()}
