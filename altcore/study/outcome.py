"""The outcome of a run: its losses, how it ended, and how far it is from its twin."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen

from altcore.runs import ENDED, EVENTS, METRICS, lines_of, summary_of

DIVERGED = ("nan_patience", "diverged")
"""Causes of a collapse that mean that the loss left."""
TAIL = 0.1
"""Share of the steps at the end over which losses are compared."""


@frozen
class Outcome:
    """The outcome of an arm's run."""

    losses: tuple[float, ...] = field(repr=False)
    """Training losses by step; shorter than the study's steps if the run ended early."""
    diverged: bool
    entropy: float | None
    """The unigram entropy of the data, where the workload states it."""
    lines: tuple[Mapping[str, Any], ...] = field(repr=False)
    """The lines of metrics, diagnostics included."""
    learned: bool | None = None
    """Whether it learned, by the verdict of its summary; not if it ended early."""
    stalled: float | None = None
    """Share of the nonzero updates of stored weights that moved nothing; None if none are stored.
    """
    evaluation: Mapping[str, Any] = field(factory=dict, repr=False)
    """Its last evaluation; empty if there is none."""
    facts: Mapping[str, Any] = field(factory=dict, repr=False)
    """What its workload says of the data."""

    def end(self, steps: int) -> tuple[float, ...]:
        """Return the losses of the last tenth of a study's steps; fewer if it ended early."""
        return self.losses[steps - tail_length(steps) : steps]

    def tail(self, steps: int) -> float:
        """Return the mean loss of the last tenth, or infinity if the run diverged."""
        part = self.end(steps)
        return math.inf if self.diverged or not part else math.fsum(part) / len(part)


def tail_length(steps: int) -> int:
    """Return how many steps at the end are compared."""
    return max(1, math.ceil(TAIL * steps))


def gap(outcome: Outcome, reference: Outcome, steps: int) -> float:
    """Return the mean of the per-batch loss differences over the last tenth of the steps.

    A diverged run counts with the unigram entropy. If there is none, or the twin is not below it,
    it counts with the reference's first loss. NaN if the reference lacks one of these losses.
    """
    count, base = tail_length(steps), reference.end(steps)
    if len(base) < count or not all(map(math.isfinite, base)):
        return math.nan
    if not outcome.diverged:
        differences = (a - b for a, b in zip(outcome.end(steps), base, strict=True))
        return math.fsum(differences) / count
    mean = math.fsum(base) / count
    censored = outcome.entropy
    if censored is None or censored <= mean:
        censored = reference.losses[0]
    return censored - mean


def outcome_of(path: Path, steps: int) -> Outcome:
    """Read the outcome of a run from its directory."""
    lines = [x for x in lines_of(path, METRICS) if "loss" in x]
    losses = tuple(_number(x["loss"]) for x in lines)
    causes = {e.get("cause") for e in lines_of(path, EVENTS) if e.get("event") == "collapse"}
    finite = all(map(math.isfinite, losses[-tail_length(steps) :]))
    early = len(losses) < steps
    summary = summary_of(path)
    entropy = summary["workload_facts"].get("unigram_entropy")
    diverged = early or not finite or bool(causes & set(DIVERGED))
    learned, stalled = summary["learned"] and not early, summary["stored_stall_rate"]
    rest = summary["evaluation"], summary["workload_facts"]
    return Outcome(losses, diverged, entropy, tuple(lines), learned, stalled, *rest)


def is_whole(path: Path, steps: int) -> bool:
    """Return whether a run ended and its record is complete."""
    status = summary_of(path)["status"]
    lines = sum("loss" in x for x in lines_of(path, METRICS))
    return status in ENDED and (status != "finished" or lines == steps)


def _number(value: Any) -> float:
    """Return a loss from metrics.jsonl, where nan and inf are words."""
    return float(value) if value is not None else math.nan
