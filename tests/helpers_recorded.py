"""Recorded runs for tests of trackers, and what each tracker's own reader finds."""

from __future__ import annotations

import csv
import json
import math
import sqlite3
from collections import defaultdict
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from attrs import define, field
from helpers import run_directory

from altcore.config import TrainConfig
from altcore.runs import read_lines, read_run, to_json, write_configuration

Series = dict[str, list[tuple[int, Any]]]
"""Each value's steps and numbers, by name."""


@define
class RecordedRun:
    """A run whose record a test writes, and takes back as a resume does."""

    folder: Path
    run_id: str = "0123456789abcdef0123"
    path: Path = field(init=False)

    def __attrs_post_init__(self) -> None:
        directory = run_directory(self.folder, name="run")
        about = {"run_id": self.run_id, "started": "2026-01-31T12:00:00+0000"}
        directory.write_json("environment.json", about)
        write_configuration(directory, TrainConfig())
        directory.close()
        self.path = directory.path
        self.append("events.jsonl", step=0, event="start", name="run", format="E4M3")

    def steps(self, *numbers: int, loss: float | None = None, **values: Any) -> None:
        """Record steps."""
        for step in numbers:
            own = 5.0 - step / 8 if loss is None else loss
            self.append("metrics.jsonl", step=step, loss=own, **values)
            spent = {"step_time_ms": 2.0 * step, "elapsed_seconds": step / 2}
            self.append("timings.jsonl", step=step, **spent)

    def append(self, file: str, **line: Any) -> None:
        """Add a line to a file of the record."""
        with (self.path / file).open("a") as lines:
            lines.write(json.dumps(to_json(line)) + "\n")

    def go_back(self, to: int) -> None:
        """Take back what was recorded after a step, as a resume from its checkpoint does."""
        for file in ("metrics.jsonl", "timings.jsonl", "events.jsonl"):
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
        found: Series = defaultdict(list)
        for line in [*self.record.metrics, *read_lines(self.path / "timings.jsonl")]:
            for name, value in line.items():
                if name not in ("step", "elapsed_seconds"):
                    found[name].append((line["step"], value))
        return dict(found)


def csv_series(path: Path) -> Series:
    """Read the numbers in reports/csv/metrics.csv of a run."""
    found: Series = defaultdict(list)
    with (path / "reports" / "csv" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    steps = [int(row.pop("step")) for row in rows]
    assert steps == sorted(set(steps))
    for step, row in zip(steps, rows, strict=True):
        for name, text in row.items():
            with suppress(ValueError):
                found[name].append((step, float(text)))
    return dict(found)


def tensorboard_reader(path: Path) -> Any:
    """Read reports/tensorboard with TensorBoard's own reader, and leave nothing out."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    kinds = dict.fromkeys(("scalars", "histograms", "tensors"), 0)
    return EventAccumulator(str(path / "reports" / "tensorboard"), kinds).Reload()


def tensorboard_series(path: Path) -> Series:
    """Return the scalars in reports/tensorboard."""
    found = tensorboard_reader(path)
    tags = found.Tags()["scalars"]
    return {tag: [(entry.step, entry.value) for entry in found.Scalars(tag)] for tag in tags}


def trackio_rows(database: Path, query: str) -> list[Any]:
    """Ask a project's database of trackio."""
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(query).fetchall()


def trackio_series(database: Path) -> Series:
    """Return the metrics in a project's database of trackio."""
    found: Series = defaultdict(list)
    words = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
    for step, metrics in trackio_rows(database, "SELECT step, metrics FROM metrics ORDER BY id"):
        for name, value in json.loads(metrics).items():
            found[name].append((step, words.get(value, value)))
    return dict(found)
