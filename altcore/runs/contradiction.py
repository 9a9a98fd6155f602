"""A summary against the lines that it sums up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from altcore.runs.directory import METRICS
from altcore.runs.json_lines import read_lines


def contradiction_in(path: Path, summary: Mapping[str, Any]) -> str | None:
    """Return in what a run's summary differs from its metrics, which somebody edited then.

    The last training loss and the last validation loss are compared; None if they are the same, or
    if the lines have them not.
    """
    told = {key: summary.get(key) for key in ("final_loss", "val_loss")}
    if summary.get("status") == "running" or not any(told.values()):
        return None
    found: dict[str, Any] = {}
    for line in read_lines(path / METRICS):
        if line["step"] == summary.get("final_loss_step") and "loss" in line:
            found["final_loss"] = line["loss"]
        if "val_loss" in line:
            found["val_loss"] = line["val_loss"]
    for key, value in found.items():
        if told[key] is not None and isinstance(value, float) and value != told[key]:
            return f"{path / METRICS} says {key} {value:.6g}, and summary.json {told[key]:.6g}"
    return None
