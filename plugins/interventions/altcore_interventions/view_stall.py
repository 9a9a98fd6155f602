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
    """The recorded steps of the recipe in force, and of those the window that is judged."""

    since: int = 0
    """The step with which the recipe or the state was changed last."""
    lines: list[tuple[int, float, float, float]] = field(factory=list)
    """(step, loss, stall rate, learning rate) of steps that are to be judged."""
    judged: list[list[float]] = field(factory=list)
    """As a checkpoint held the window."""
    window: StallWindow | None = None

    def note(self, run: Run, metrics: Mapping[str, Any]) -> None:
        """Keep what a line of metrics says."""
        step, loss, rate = metrics["step"], metrics["loss"], metrics.get("view_stall_rate")
        # A diagnostic may have more steps recorded; what is judged must not depend on it.
        is_due = step > self.since and step % run.config.log_interval == 0
        if is_due and rate is not None and math.isfinite(loss):
            # Against the schedule's peak: an action that scaled the rate is meant to stay.
            self.lines.append((step, loss, rate, metrics["learning_rate"] / run.lr_scale))

    def judge(self, run: Run, step: int, threshold: float) -> tuple[float, Trend] | None:
        """Return stall rate and trend once most views stall and the training loss stands still.

        ``step``: the one that has begun.
        """
        if self.window is None:
            self.window = StallWindow(run.config)
            self.window.load_state_dict(self.judged)
        # A line comes sooner if the engine waits for the device: it is taken no sooner.
        while self.lines and self.lines[0][0] < step - 1:
            self.window.add(*self.lines.pop(0))
        found = self.window.stalled(threshold)
        return None if found is None or found[1].training_improves else found

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs, as plain data."""
        judged = self.judged if self.window is None else self.window.state_dict()
        return {"since": self.since, "lines": [list(x) for x in self.lines], "judged": judged}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.since, self.judged = state["since"], state["judged"]
        self.lines = [tuple(x) for x in state["lines"]]
