"""The time that the steps of a run take, without its evaluations and checkpoints."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from attrs import define


@define(eq=False)
class Clock:
    """Counts all steps of all sessions of a run, recorded or not."""

    run_began: float
    """When the run would have begun, had it been one session: seconds of `time.perf_counter`."""
    steps: int = 0
    seconds: float = 0.0
    items: int = 0
    step_began: float | None = None
    """None between two steps."""

    @classmethod
    def after(cls, last: Mapping[str, Any] | None) -> Clock:
        """Return the clock of a run whose last line of timings is ``last``."""
        now = time.perf_counter()
        if last is None:
            return cls(now)
        spent = (last[f"training_{name}"] for name in ("steps", "seconds", "items"))
        return cls(now - last["elapsed_seconds"], *spent)

    def begin_step(self) -> None:
        """Start."""
        self.step_began = time.perf_counter()

    def end_step(self, items: int) -> dict[str, float]:
        """Stop; returns the timings of a step of so many items, and of all steps so far.

        They are empty if it stands still already.
        """
        if self.step_began is None:
            return {}
        seconds = time.perf_counter() - self.step_began
        self.step_began = None
        self.steps += 1
        self.seconds += seconds
        self.items += items
        return {
            "step_time_ms": 1e3 * seconds,
            "items_per_second": items / seconds,
            "training_steps": self.steps,
            "training_seconds": self.seconds,
            "training_items": self.items,
        }

    def elapsed(self) -> float:
        """Return the seconds since the run began, with its evaluations and checkpoints."""
        return time.perf_counter() - self.run_began
