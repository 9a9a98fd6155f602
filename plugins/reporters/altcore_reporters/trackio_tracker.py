"""The reporter ``trackio``: a dashboard on this machine, without an account."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import attrs
from attrs import field

from altcore.plugin import RunRecord, setting
from altcore_reporters.tracked import Line, lines_of

BATCH_SECONDS = 1.0
"""Lines are written together, this often at most: each call of the database takes a while."""


@attrs.define(eq=False)
class TrackioTracker:
    """Writes the run to trackio's database; ``trackio show --project altcore`` shows it.

    It writes what trackio's own client would, but gives each line an id of its own: so none can be
    there twice, and one that cannot be written is an error.
    """

    project: str = setting("altcore", help="the project in trackio's dashboard")
    name: str = field(init=False, default="")
    run_id: str = field(init=False, default="")
    config: dict[str, Any] = field(init=False, factory=dict)
    lines: list[tuple[int, Line]] = field(init=False, factory=list)
    """The last line that was written and those that wait, by their numbers."""
    written: int = field(init=False, default=0)
    written_at: float = field(init=False, default=0.0)

    def start(self, record: RunRecord) -> None:
        """Let the database have the lines that are recorded so far, and no others."""
        from trackio.sqlite_storage import SQLiteStorage

        self.name, self.run_id = record.name, record.environment["run_id"]
        self.config = json.loads(json.dumps(dict(record.config), default=str))
        self.lines = list(enumerate(lines_of(record)))
        held = SQLiteStorage.get_logs(self.project, self.name, run_id=self.run_id)
        told = [{"step": step, **shown(values)} for _, (step, values, _) in self.lines]
        if [text_of(row) for row in held] != [text_of(row) for row in told[: len(held)]]:
            SQLiteStorage.delete_run(self.project, self.name, run_id=self.run_id)
            held = []
        self.written = len(held)
        if self.written < len(self.lines):
            self._write(self.config)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Write a line, soon."""
        number = self.lines[-1][0] + 1 if self.lines else 0
        self.lines.append((number, (step, dict(values), time.time())))
        if time.monotonic() - self.written_at > BATCH_SECONDS:
            self._write(self.config)

    def alert(self, level: str, title: str, text: str, wait: float) -> None:
        """Write an alert."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write what is outstanding, and the summary into the configuration."""
        from trackio.sqlite_storage import SQLiteStorage

        config = {**self.config, "summary": json.loads(json.dumps(summary, default=str))}
        is_known = SQLiteStorage.get_run_config(self.project, run_id=self.run_id) == config
        if self.lines and not (is_known and self.written > self.lines[-1][0]):
            self._write(config)

    def _write(self, config: Mapping[str, Any]) -> None:
        """Write the lines that wait; of one that is there already only the configuration is new."""
        from trackio.sqlite_storage import SQLiteStorage

        lines = [line for _, line in self.lines]
        SQLiteStorage.bulk_log(
            project=self.project,
            run=self.name,
            run_id=self.run_id,
            config=dict(config),
            metrics_list=[shown(values) for _, values, _ in lines],
            steps=[step for step, _, _ in lines],
            timestamps=[datetime.fromtimestamp(when, UTC).isoformat() for _, _, when in lines],
            log_ids=[f"{self.run_id}/{number}" for number, _ in self.lines],
        )
        self.written, self.lines = self.lines[-1][0] + 1, self.lines[-1:]
        self.written_at = time.monotonic()


def shown(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as the dashboard shows them: a list is a histogram."""
    return {
        k: {"_type": "trackio.histogram", "bins": list(range(len(v) + 1)), "values": v}
        if isinstance(v, list)
        else v
        for k, v in values.items()
    }


def text_of(row: Mapping[str, Any]) -> str:
    """Return a row as text: NaN is not equal to itself."""
    return json.dumps({k: v for k, v in row.items() if k != "timestamp"}, sort_keys=True)
