"""The time that the steps of a run take, without its evaluations and checkpoints."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import define

from altcore.runs import finite

SPENT = ("elapsed_seconds", "training_steps", "training_seconds", "training_items")
"""What a line of timings has of all steps so far."""


def spent_in(lines: Sequence[Mapping[str, Any]]) -> Mapping[str, float] | None:
    """Return `SPENT` of the last line of timings that has all of it; a damaged one has less."""
    for line in reversed(lines):
        values = {key: finite(line.get(key)) for key in SPENT}
        known = {key: value for key, value in values.items() if value is not None}
        if known.keys() == values.keys():
            return known
    return None


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
    def after(cls, lines: Sequence[Mapping[str, Any]]) -> Clock:
        """Return the clock of a run that has these lines of timings."""
        now, spent = time.perf_counter(), spent_in(lines)
        if spent is None:
            return cls(now)
        elapsed, steps, seconds, items = (spent[key] for key in SPENT)
        return cls(now - elapsed, int(steps), seconds, int(items))

    def begin_step(self) -> None:
        """Start."""
        self.step_began = time.perf_counter()

    def end_step(self, items: int) -> dict[str, float | None]:
        """Stop; returns the timings of a step of so many items, and of all steps so far.

        They are empty if it stands still already. Without a clock that goes on, as under a plugin
        that stops it, the throughput is None.
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
            "items_per_second": rate(items, seconds),
            "training_steps": self.steps,
            "training_seconds": self.seconds,
            "training_items": self.items,
        }

    def elapsed(self) -> float:
        """Return the seconds since the run began, with its evaluations and checkpoints."""
        return time.perf_counter() - self.run_began


def rate(count: float, seconds: float) -> float | None:
    """Return how many there were a second, None if no time passed."""
    return count / seconds if seconds > 0 else None
