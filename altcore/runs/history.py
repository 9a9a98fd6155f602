"""The history of a run: its lines of metrics, and numbers over all of them or the last tenth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from altcore.runs.directory import METRICS
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


def early_and_late(lines: Lines, measure: str, worst: Any = max) -> dict[str, Any] | None:
    """Return a row of a diagnostic's findings: a measure early and late, and the worst layer.

    Early and late are the means over the first and the last tenth of the lines that have the
    measure, at least one line each. The worst layer is that of the last line: the one with the
    largest value, or with the smallest if ``worst`` is ``min``.

    Args:
        lines: the argument ``history`` of the hook ``findings``.
        measure: the name of the aggregate, without the plugin's.

    Returns:
        ``early``, ``late`` and, if layers were measured, ``worst layer`` and ``there``; None if
        nothing finite was measured.

    >>> lines = [{"step": 1, "mean": 3.0}, {"step": 2, "mean": 1.0, "mean/h.0": 0.5, "mean/h.1": 2}]
    >>> early_and_late(lines, "mean")
    {'early': 3.0, 'late': 1.0, 'worst layer': 'h.1', 'there': 2}
    """
    known = [line for line in lines if finite(line.get(measure)) is not None]
    if not known:
        return None
    row: dict[str, Any] = {
        "early": mean_of(tail(known[::-1]), measure),
        "late": mean_of(tail(known), measure),
    }
    prefix = f"{measure}/"
    layers = {
        key.removeprefix(prefix): value
        for key, value in known[-1].items()
        if key.startswith(prefix) and finite(value) is not None
    }
    if layers:
        name = worst(layers, key=layers.__getitem__)
        row |= {"worst layer": name, "there": layers[name]}
    return row
