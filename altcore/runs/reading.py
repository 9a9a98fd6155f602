"""Reading runs back: finding them, and how they ended."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from altcore.builtin_types import to_json
from altcore.config import check_name
from altcore.errors import BadInput, nearest
from altcore.runs.directory import EVENTS, METRICS
from altcore.runs.json_lines import read_lines

RATES = ("stored_stall_rate", "view_stall_rate", "overflow_rate", "flushed_rate")


def find_run(name: str, runs_dir: str) -> Path:
    """Return the directory of a run. Raises `BadInput` if there is none with that name."""
    path = Path(runs_dir) / check_name(name, "run")
    if not (path / "config.yaml").is_file():
        known = [p.name for p in list_runs(runs_dir)]
        raise BadInput(f"there is no run {name!r} in {runs_dir}", meant=nearest(name, known))
    return path


def list_runs(runs_dir: str) -> list[Path]:
    """Return the run directories, oldest first."""
    root = Path(runs_dir)
    if root.exists() and not root.is_dir():
        raise BadInput(f"{root} is no folder", key="runs_dir")
    found = [p for p in root.iterdir() if (p / "config.yaml").is_file()] if root.is_dir() else []
    return sorted(found, key=lambda p: ((p / "config.yaml").stat().st_mtime, p.name))


def summary_of(path: Path) -> dict[str, Any]:
    """Return a run's summary: the one of its last end, or the facts so far while it runs.

    Raises `BadInput` if no run can have written the record.
    """
    lines = _checked(path / METRICS, step=int)
    events = _checked(path / EVENTS, step=int, event=str)
    steps = max((x["step"] for x in lines if "loss" in x), default=0)
    summary: dict[str, Any] = {"status": "unfinished", "steps": steps}
    for event in events:
        if event["event"] == "end":
            ended = {k: v for k, v in event.items() if k not in ("event", "step")}
            summary = {"status": "unknown", "steps": steps, **ended}
        elif event["event"] == "resume":
            summary = {"status": "unfinished", "steps": steps}
    return {"name": path.name, **summary}


def _checked(path: Path, **keys: type) -> list[dict[str, Any]]:
    """Read a file whose lines must have ``keys``."""
    lines = read_lines(path)
    for line in lines:
        for key, kind in keys.items():
            if not isinstance(line.get(key), kind):
                shown = json.dumps(to_json(line))
                raise BadInput(f"{path}: {shown:.60} is no line of a run: {key} is missing")
    return lines


def summarize(path: Path) -> dict[str, Any]:
    """Return the last training loss of a run and the mean of each rate over its record."""
    lines = [x for x in read_lines(path / METRICS) if "loss" in x]
    last = lines[-1]["loss"] if lines else None
    return {"final_loss": last, **{key: means(lines, key) for key in RATES}}


def means(lines: Iterable[Mapping[str, Any]], key: str) -> float | None:
    """Return the mean of a metric over the lines that have it, or None."""
    found = [x[key] for x in lines if isinstance(x.get(key), int | float)]
    return sum(found) / len(found) if found else None
