"""The history of a run: its lines of metrics, and numbers over all of them or the last tenth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from altcore.run_files import METRICS
from altcore.runs.json_lines import read_lines

Lines = Sequence[Mapping[str, Any]]

TAIL = 0.1
"""Share of the recorded steps that are the run's end."""


def step_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's recorded steps; those of evaluations are left out."""
    return [line for line in read_lines(path / METRICS) if "loss" in line]


def tail(lines: Lines) -> Lines:
    """Return the last tenth of the lines, at least one if there is any."""
    return lines[-max(1, math.ceil(TAIL * len(lines))) :]


def mean_of(lines: Lines, key: str) -> float | None:
    """Return the mean of a metric over the lines where it is a finite number; None if none is."""
    found = [value for line in lines if (value := finite(line.get(key))) is not None]
    return math.fsum(found) / len(found) if found else None


def finite(value: Any) -> float | None:
    """Return a finite number as it is, and anything else as None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) else None


def early_and_late(
    history: Lines, title: str, measures: Mapping[str, str], worst: Callable[..., str] = max
) -> list[dict[str, Any]]:
    """Return rows of a diagnostic's findings: measures early and late, and the worst layer.

    Early and late are the means over the first and the last tenth of the lines that have the
    measure, at least one line each. The worst layer is that of the last line.

    Args:
        history: the argument of the hook ``findings``.
        title: the heading of the first column.
        measures: what to call each measure, and its name. One that is nowhere finite is left out.
        worst: ``max`` if the layer with the largest value is the worst, ``min`` for the smallest.

    >>> lines = [{"step": 1, "mean": 3.0}, {"step": 9, "mean": 1.0, "mean/h.0": 0.5, "mean/h.1": 2}]
    >>> early_and_late(lines, "ULPs", {"mean": "mean", "largest": "max"})
    [{'ULPs': 'mean', 'steps': '1-9', 'early': 3.0, 'late': 1.0, 'worst layer': 'h.1', 'there': 2}]
    """
    rows = []
    for label, measure in measures.items():
        known = [line for line in history if finite(line.get(measure)) is not None]
        if not known:
            continue
        row = {
            title: label,
            "steps": f"{known[0]['step']}-{known[-1]['step']}",
            "early": mean_of(tail(known[::-1]), measure),
            "late": mean_of(tail(known), measure),
        }
        layers = {
            key.removeprefix(f"{measure}/"): value
            for key, value in known[-1].items()
            if key.startswith(f"{measure}/") and finite(value) is not None
        }
        if layers:
            name = worst(layers, key=layers.__getitem__)
            row |= {"worst layer": name, "there": layers[name]}
        rows.append(row)
    return rows
