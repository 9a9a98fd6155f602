"""A summary against the lines that it sums up, and these against the newest checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from altcore.runs.directory import METRICS
from altcore.runs.json_lines import read_lines
from altcore.runs.own_checkpoint import changed_log


def contradiction_in(path: Path, summary: Mapping[str, Any]) -> str | None:
    """Return in what a run's files differ, one of which somebody edited then, or which is damaged.

    Of a summary, the last training loss and the last validation loss are compared with the metrics;
    None if they are the same, or if the lines have them not. So are all lines with the digests in
    the newest checkpoint.
    """
    told = {key: summary.get(key) for key in ("final_loss", "val_loss")}
    if summary.get("status") == "running":
        return None
    if (problem := changed_log(path)) or not any(told.values()):
        return problem
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
