"""What became of a run so far, for its summary and its checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from attrs import define, field

RECENT = 1000
"""Steps whose loss is kept."""


@define
class RunHistory:
    """Plain data, kept in checkpoints."""

    status: str = "running"
    """running, or how the run ended: see `altcore.runs.STATUSES`."""
    collapses: list[dict[str, Any]] = field(factory=list)
    evaluation: dict[str, Any] = field(factory=dict)
    """The last one, as its line in metrics.jsonl."""
    first_evaluation: dict[str, Any] = field(factory=dict)
    best: dict[str, Any] = field(factory=dict)
    """The evaluation that is best by ``monitor``; empty before there is one."""
    stop: dict[str, Any] = field(factory=dict)
    """The Stop that ended the run: ``step``, ``plugin``, ``reason``."""
    final_loss: tuple[float, int] | None = None
    """The last training loss that is finite, and its step."""
    best_loss: tuple[float, int] | None = None
    """The lowest one, likewise."""
    recent: list[tuple[int, float, bool]] = field(factory=list)
    """The last `RECENT` steps, recorded or not: step, training loss, whether it made an update."""
    discarded: int = 0
    """Steps without an update."""
    has_anomaly: bool = False
    has_bad_moments: bool = False
    """Whether the optimizer's state was not finite at the last checkpoint."""
    is_overflowing: bool = False
    scales: dict[str, float] = field(factory=dict)
    """Of stored weights, by parameter, when they were last read."""
    stall_rates: dict[str, float | None] = field(factory=dict)
    """Of the last recorded update: stored, view and lost (`altcore.engine.stall`), each None if
    there is none."""
    stall_since: int = 0
    """The step of the last change of format or rollback: the rates up to it tell nothing now."""

    def note_loss(self, step: int, loss: float) -> None:
        """Keep a step's training loss."""
        self.recent.append((step, loss, True))
        del self.recent[:-RECENT]
        if math.isfinite(loss):
            self.final_loss = (loss, step)
            self.best_loss = min(self.best_loss or self.final_loss, self.final_loss)

    def note_discarded(self) -> None:
        """Keep that the last step makes no update."""
        self.discarded += 1
        step, loss, _ = self.recent[-1]
        self.recent[-1] = (step, loss, False)

    def note_stall(self, line: Mapping[str, Any], log_interval: int) -> None:
        """Keep the stall rates of a line of metrics, unless it was recorded for a diagnostic."""
        if line["step"] % log_interval == 0 and line["step"] > self.stall_since:
            kinds = ("stored", "view", "lost")
            self.stall_rates = {kind: line.get(f"{kind}_stall_rate") for kind in kinds}

    def forget_stall(self, step: int) -> None:
        """Forget the stall rates up to a step, after which formats or state are others."""
        self.stall_rates, self.stall_since = {}, step

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the values of a checkpoint, by field."""
        for name, value in state.items():
            setattr(self, name, value)
