"""Records that tests of pictures and pages make up: of no training, and of any size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from altcore.plugin import RunRecord, full_summary

Line = Mapping[str, Any]


class MadeUp(RunRecord):
    """A record of what a test says."""

    def __init__(self, name: str = "run", **parts: Any) -> None:
        super().__init__(name, "a test")
        self.summary = full_summary(
            {"name": name, "status": "finished", **parts.get("summary", {})}
        )
        self.config: Line = parts.get("config", {})
        self.environment: Line = parts.get("environment", {})
        self.metrics: Sequence[Line] = parts.get("metrics", [])
        self.events: Sequence[Line] = parts.get("events", [])


def losses(steps: int, *, low: float = 2.0, key: str = "loss") -> list[dict[str, Any]]:
    """Return lines of a loss that falls from 5.5 to ``low``, with some noise."""
    return [
        {
            "step": step,
            key: low + (5.5 - low) * math.exp(-6 * step / steps) + 0.1 * math.sin(37 * step),
            "grad_norm": 1 + 0.5 * math.cos(11 * step),
            "stored_stall_rate": min(1.0, 0.5 + step / (2 * steps)),
            "view_stall_rate": None,
            "overflow_rate": None,
            "flushed_rate": 0.01 + 0.005 * math.sin(step),
        }
        for step in range(1, steps + 1)
    ]


def run(
    fmt: str = "E4M3",
    seed: int = 42,
    steps: int = 40,
    low: float = 2.0,
    *,
    metrics: Sequence[Line] | None = None,
    **parts: Any,
) -> MadeUp:
    """Return the record of a run that learned, unless its loss stays above 3."""
    learned = low < 3
    summary = {
        "format": fmt,
        "recipe": "pure",
        "seed": seed,
        "steps": steps,
        "max_steps": steps,
        "learned": learned,
        "verdict": "learned" if learned else "did not learn",
        "final_loss": low,
        "val_loss": low + 0.1,
        "evaluation": {"step": steps, "val_loss": low + 0.1},
        "workload_facts": {"unigram_entropy": 3.2},
        "stored_stall_final": 0.9,
        "bit_stall_final": 0.9,
        "bit_stall_of": "stored",
        "item": "tokens",
        **parts.pop("summary", {}),
    }
    evaluations = [(max(1, steps // 4), low + 0.5), (steps, low + 0.1)]
    lines = [*losses(steps, low=low), *({"step": s, "val_loss": v} for s, v in evaluations)]
    config = {"format": fmt, "recipe": "pure", "seed": seed, **parts.pop("config", {})}
    name = parts.pop("name", f"{fmt}-s{seed}")
    given = lines if metrics is None else metrics
    return MadeUp(name, summary=summary, config=config, metrics=given, **parts)
