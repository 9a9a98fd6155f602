"""The stall of views of float32 masters, judged as in the original experiments."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs
from attrs import field

from altcore.plugin import StallWindow, Trend

if TYPE_CHECKING:
    from altcore.plugin import Run


@attrs.define(eq=False)
class ViewStall:
    """The recorded steps of the recipe in force that are judged."""

    since: int = 0
    """The step with which the recipe or the state was changed last."""
    judged: list[list[float]] = field(factory=list)
    """As a checkpoint held the window."""
    window: StallWindow | None = None

    def note(self, run: Run, metrics: Mapping[str, Any]) -> None:
        """Take what a line of metrics says into the window."""
        step, loss, rate = metrics["step"], metrics["loss"], metrics.get("view_stall_rate")
        # This plugin's own measures have every step recorded.
        is_due = step > self.since and step % run.config.log_interval == 0
        if is_due and rate is not None and math.isfinite(loss):
            # Against the schedule's peak: an action that scaled the rate is meant to stay.
            rate_of_peak = metrics["learning_rate"] / run.lr_scale
            self._window(run).add(step, loss, rate, rate_of_peak)

    def judge(self, run: Run, threshold: float) -> tuple[float, Trend] | None:
        """Return stall rate and trend once most views stall and the training loss stands still."""
        found = self._window(run).stalled(threshold)
        return None if found is None or found[1].training_improves else found

    def _window(self, run: Run) -> StallWindow:
        if self.window is None:
            self.window = StallWindow(run.config)
            self.window.load_state_dict(self.judged)
        return self.window

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs, as plain data."""
        judged = self.judged if self.window is None else self.window.state_dict()
        return {"since": self.since, "judged": judged}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.since, self.judged = state["since"], state["judged"]
