"""The diagnostic ``loss-slope``: how fast the training loss falls, and whether by a power law."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import attrs
import torch
from attrs import field
from attrs.validators import ge, gt
from torch import Tensor

from altcore.plugin import BadInput, hookimpl, setting
from altcore_diagnostics.analysis.epoch_slope import finite_mean, knee_epoch, loss_slope
from altcore_diagnostics.analysis.power_law import PowerLaw, power_law

if TYPE_CHECKING:
    from altcore.plugin import Run, Step

LAW = "power_law_slope"
FIT = PowerLaw("power_law_amplitude", LAW, "r_squared")
"""The names of its parts."""


def _after_start(plugin: LossSlope, _: attrs.Attribute[int], end: int) -> None:
    if end < plugin.early_start + 2:
        raise BadInput("two epochs from early_start on are the least", key="early_end")


@attrs.define(eq=False)
class LossSlope:
    """Slopes of the training loss over epochs, and the power law that it follows.

    Measures, with epochs counted from 1 and losses in the workload's unit (nats, for cross
    entropies):

    - at every step ``weight_decay``: the largest of the optimizer's groups. Loss, learning rate and
      what the workload measures are in the same line;
    - ``points_per_epoch`` times an epoch ``point_loss``: the mean loss of the steps since the last
      point;
    - at each epoch's end ``epoch_loss``: the mean loss of its steps;
    - ``alpha_5_15``, at each epoch's end from epoch 5 on: the slope, per epoch, of the line through
      the mean losses of epochs 5 to 14 as far as they are over (``early_start`` and ``early_end``,
      which name it, too);
    - ``knee_epoch``: the first epoch whose mean loss is at most ``knee_loss``, which ends the
      burn-in; ``burn_in_loss``: that mean. From then on, at each epoch's end, there is
      ``alpha_full``: the slope from the knee epoch to now;
    - every ``fit_epochs`` epochs ``power_law_slope``, ``power_law_amplitude`` and ``r_squared``:
      the law y = amplitude · x^slope, with y the ``point_loss`` and x the epochs completed, from
      the end of the knee epoch on, fitted as a line through the logarithms; and the share of the
      variance of log y that it explains.

    A loss that is not finite is left out of its mean. What cannot be fitted is left out of the
    line, and is null in the findings: slopes of fewer than two epochs, and all that follows the
    burn-in before it is over. If there were epochs enough, but not with finite losses, a warning
    says so, once for each measure. The findings are the values that were measured last.

    If it is added in the middle of a run, an epoch or a point that it saw in part has no mean.
    There is no knee then, as nobody knows of the epochs before, nor an early slope whose first
    epoch is not whole; a warning and the findings say so.

    It sees every step, so every step is recorded (as with ``log_interval`` 1), and reads the device
    at each point. If the workload counts no epochs, ``weight_decay`` at the first step is all.
    """

    points_per_epoch: int = setting(
        4, help="mean losses in an epoch, which the power law is fitted to", validator=ge(1)
    )
    early_start: int = setting(5, help="first epoch of the early slope", validator=ge(1))
    early_end: int = setting(
        15, help="epoch that ends the early slope, not in it", validator=_after_start
    )
    knee_loss: float = setting(
        1.0, help="mean loss of an epoch with which the burn-in is over", validator=gt(0)
    )
    fit_epochs: int = setting(2, help="epochs between fits of the power law", validator=ge(1))

    first_point: int | None = field(init=False, default=None)
    """How many points were over before the first that it saw whole; None before it saw a step."""
    losses: list[Tensor] = field(init=False, factory=list)
    """Of the steps since the last point, on the device."""
    of_epoch: list[float] = field(init=False, factory=list)
    """Of the steps of this epoch, up to the last point."""
    points: list[tuple[float, float]] = field(init=False, factory=list)
    """Epochs completed, and the mean loss since the point before."""
    means: dict[int, float] = field(init=False, factory=dict)
    """The mean loss of each epoch that is over."""
    fit: dict[str, float | None] = field(init=False, factory=lambda: dict.fromkeys(FIT))
    """The power law as it was last fitted."""
    warned: list[str] = field(init=False, factory=list)
    """The measures of which a warning told."""

    @hookimpl
    def is_due(self, run: Run, step: Step) -> bool:
        """Whether there is a loss to follow; the first step shows the weight decay in any case."""
        return run.epoch is not None or step.index == 1

    @hookimpl
    @torch.no_grad()
    def post_backward(self, run: Run, step: Step) -> dict[str, Any]:
        """Keep the step's loss; at a point, fit what is due."""
        decays = [g["weight_decay"] for g in run.optimizer.param_groups if "weight_decay" in g]
        measures: dict[str, Any] = {"weight_decay": max(decays, default=None)}
        if run.epoch is None or step.mean_loss is None:
            return measures
        interval = run.epoch.steps / self.points_per_epoch
        before, now = reached(step.index - 1, interval), reached(step.index, interval)
        if self.first_point is None:
            self._begin(run, step.index, interval)
        if before >= self.first_point:
            self.losses.append(step.mean_loss.double())
            if now > before:
                measures["point_loss"] = self._add_point(run.epoch.after(step.index))
        epoch = now // self.points_per_epoch
        if epoch > before // self.points_per_epoch:
            measures |= self._end_epoch(run, epoch)
        return {key: value for key, value in measures.items() if value is not None}

    def _begin(self, run: Run, step: int, interval: Fraction) -> None:
        """Note from where on points are whole; say what will be missing."""
        before = reached(step - 1, interval)
        is_whole = step == 1 or reached(step - 2, interval) < before
        self.first_point = 0 if step == 1 else before + (not is_whole)
        if self.first_epoch > 1:
            run.emit("warning", message=self._unseen())

    @property
    def first_epoch(self) -> int:
        """The first epoch of which it saw each step."""
        return math.ceil((self.first_point or 0) / self.points_per_epoch) + 1

    def _unseen(self) -> str:
        early = f"{self.early} (from epoch {self.early_start}) and "
        none = early if self.first_epoch > self.early_start else ""
        return (
            f"loss-slope saw no epoch before {self.first_epoch} whole: there is no {none}knee, nor "
            "what is counted from it"
        )

    def _add_point(self, epochs: float) -> float | None:
        found = torch.stack(self.losses).cpu().numpy().tolist()
        self.losses = []
        self.of_epoch += found
        self.points.append((epochs, finite_mean(found)))
        return none_if_nan(self.points[-1][1])

    def _end_epoch(self, run: Run, epoch: int) -> dict[str, float | None]:
        if epoch < self.first_epoch:
            self.of_epoch = []
            return {}
        self.means[epoch] = finite_mean(self.of_epoch)
        self.of_epoch = []
        measures = {"epoch_loss": none_if_nan(self.means[epoch]), **self.slopes()}
        if epoch % self.fit_epochs == 0:
            self.fit = self.law()
            measures |= self.fit
        self._warn(run, epoch, measures)
        return measures

    @property
    def early(self) -> str:
        """The name of the early slope."""
        return f"alpha_{self.early_start}_{self.early_end}"

    def _knee(self) -> int | None:
        """Return the knee epoch; None without the epochs before it, too."""
        return knee_epoch(self.means, self.knee_loss) if self.first_epoch == 1 else None

    def slopes(self) -> dict[str, float | None]:
        """Return the knee and the slopes, as of the epochs that are over."""
        knee, start = self._knee(), self.early_start
        is_seen = start >= self.first_epoch
        return {
            self.early: loss_slope(self.means, start, self.early_end) if is_seen else None,
            "knee_epoch": knee,
            "burn_in_loss": None if knee is None else self.means[knee],
            "alpha_full": None if knee is None else loss_slope(self.means, knee),
        }

    def law(self) -> dict[str, float | None]:
        """Return the power law after the burn-in; all None if it is not fitted."""
        knee = self._knee()
        after = [] if knee is None else [point for point in self.points if point[0] >= knee]
        fit = power_law([x for x, _ in after], [y for _, y in after])
        is_fitted = math.isfinite(fit.exponent)
        return {name: x if is_fitted else None for name, x in zip(FIT, fit, strict=True)}

    def _warn(self, run: Run, epoch: int, measures: Mapping[str, float | None]) -> None:
        """Warn, once for each, of a fit that has its epochs, but not their losses."""
        knee = measures["knee_epoch"]
        starts = {self.early: self.early_start, "alpha_full": knee, LAW: knee}
        for name, start in starts.items():
            is_missing = name in measures and measures[name] is None
            is_seen = start is not None and start >= self.first_epoch
            if is_missing and is_seen and epoch > start and name not in self.warned:
                self.warned.append(name)
                message = f"{name} cannot be fitted: too few mean losses from epoch {start} on"
                run.emit("warning", message=f"{message} are finite, and positive for a power law")

    @hookimpl
    def findings(self, run: Run, history: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Say what the slopes and the fit were when last measured, null for what is not fitted."""
        if run.epoch is None:
            return ["the workload counts no epochs: no slope is fitted"]
        row: dict[str, Any] = {**self.slopes(), **self.fit}
        if self.first_epoch > 1:
            return [row, self._unseen()]
        if row["knee_epoch"] is None:
            limit = f"no epoch's mean loss reached {self.knee_loss:g}"
            return [row, f"{limit}: neither alpha_full nor the power law is fitted"]
        return [row]

    def state_dict(self) -> dict[str, Any]:
        """Return the losses that fits are made of."""
        return {
            "first_point": self.first_point,
            "losses": torch.stack(self.losses) if self.losses else None,
            "of_epoch": self.of_epoch,
            "points": [list(point) for point in self.points],
            "means": self.means,
            "fit": self.fit,
            "warned": self.warned,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.losses = [] if state["losses"] is None else list(state["losses"])
        self.first_point = state["first_point"]
        self.of_epoch, self.warned = list(state["of_epoch"]), list(state["warned"])
        self.points = [(x, y) for x, y in state["points"]]
        self.means, self.fit = dict(state["means"]), dict(state["fit"])


def reached(step: int, interval: Fraction) -> int:
    """Return how many multiples of an interval are over with a step; each is at its nearest step.

    >>> [reached(step, Fraction(5, 2)) for step in range(6)]
    [0, 0, 0, 1, 1, 2]
    """
    return math.ceil((step + Fraction(1, 2)) / interval) - 1


def none_if_nan(x: float) -> float | None:
    """Return a number, or None for NaN."""
    return None if math.isnan(x) else x
