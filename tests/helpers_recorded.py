"""Recorded runs for tests of trackers, and what each tracker's own reader finds."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from pathlib import Path
from typing import Any

from attrs import define, field
from helpers import run_directory

from altcore.runs import read_run

Series = dict[str, list[tuple[int, Any]]]
"""Each value's steps and numbers, by name."""


@define
class RecordedRun:
    """A run whose record a test writes, and takes back as a resume does."""

    folder: Path
    path: Path = field(init=False)
    lines: list[dict[str, Any]] = field(init=False, factory=list)

    def __attrs_post_init__(self) -> None:
        directory = run_directory(self.folder, name="run")
        about = {"run_id": "0123456789abcdef0123", "started": "2026-01-31T12:00:00+0000"}
        directory.write_json("environment.json", about)
        directory.close()
        self.path = directory.path

    def line(self, step: int, loss: float = 0.0, **more: Any) -> tuple[int, dict[str, Any]]:
        """Record a step; returns what a tracker is told of it."""
        values = {"loss": loss or 5.0 - step / 8, **more}
        self._append("metrics.jsonl", {"step": step, **values})
        timings = {"step": step, "step_time_ms": 2.0 * step, "elapsed_seconds": step / 2}
        self._append("timings.jsonl", timings)
        return step, {**values, "step_time_ms": 2.0 * step}

    def evaluation(self, step: int, loss: float) -> tuple[int, dict[str, Any]]:
        """Record an evaluation; returns what a tracker is told of it."""
        self._append("metrics.jsonl", {"step": step, "val_loss": loss})
        return step, {"val_loss": loss}

    def _append(self, file: str, line: dict[str, Any]) -> None:
        with (self.path / file).open("a") as lines:
            lines.write(json.dumps(line) + "\n")

    def go_back(self, to: int) -> None:
        """Take back what was recorded after a step, as a resume from its checkpoint does."""
        for file in ("metrics.jsonl", "timings.jsonl"):
            kept = (self.path / file).read_text().splitlines(keepends=True)
            kept = [line for line in kept if json.loads(line)["step"] <= to]
            (self.path / file).write_text("".join(kept))

    @property
    def record(self) -> Any:
        """What is recorded now."""
        return read_run(self.path)

    @property
    def series(self) -> Series:
        """What every tracker should hold of it."""
        timings = (self.path / "timings.jsonl").read_text().splitlines()
        found: Series = defaultdict(list)
        for line in [*self.record.metrics, *map(json.loads, timings)]:
            for name, value in line.items():
                if name not in ("step", "elapsed_seconds"):
                    found[name].append((line["step"], value))
        return dict(found)


def csv_series(path: Path) -> Series:
    """Read reports/metrics.csv of a run with pandas."""
    import pandas

    table = pandas.read_csv(path / "reports" / "metrics.csv", index_col="step")
    assert table.index.is_unique
    assert table.index.is_monotonic_increasing
    columns = {name: table[name].dropna() for name in table}
    return {name: list(zip(c.index, c, strict=True)) for name, c in columns.items()}


def tensorboard_series(path: Path) -> Series:
    """Read the scalars in reports/tensorboard with TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(path / "reports" / "tensorboard"), {"scalars": 0}).Reload()
    return {
        tag: [(entry.step, entry.value) for entry in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def trackio_series(database: Path) -> Series:
    """Read the metrics in a project's database of trackio."""
    found: Series = defaultdict(list)
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT step, metrics FROM metrics ORDER BY step, id").fetchall()
    for step, metrics in rows:
        for name, value in json.loads(metrics).items():
            found[name].append((step, value))
    return dict(found)
