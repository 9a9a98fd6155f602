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
from altcore_reporters.extras import check_installed
from altcore_reporters.tracking import TrackerReporter

BATCH_SECONDS = 1.0
"""Rows are written together, this often at most: each call of the storage takes a while."""

Row = tuple[int, dict[str, Any], float]
"""A step, its values, and the time in seconds since 1970."""


@attrs.define(eq=False)
class TrackioTracker(TrackerReporter):
    """Writes the run to trackio's database; ``trackio show`` opens the dashboard.

    Its client would only warn of what it cannot write, and draw an id for each session. So this
    writes to its storage, under the run's own id.
    """

    project: str = setting("altcore", help="the project in trackio's dashboard")
    run: dict[str, str] = field(init=False, factory=dict)
    """By what the storage knows the run."""
    config: dict[str, Any] = field(init=False, factory=dict)
    rows: list[Row] = field(init=False, factory=list)
    """Those that are not written yet, at least the last one."""
    written_at: float = field(init=False, default=0.0)

    def __attrs_post_init__(self) -> None:
        check_installed("trackio")

    def start(self, record: RunRecord) -> None:
        """Begin the run anew; alerts of earlier sessions stay."""
        storage = storage_of_trackio()
        self.address = f"trackio show --project {self.project}"
        self.run = {"run": record.name, "run_id": record.environment["run_id"]}
        self.config = plain(record.config)
        alerts = storage.get_alerts(self.project, run_id=self.run["run_id"])
        storage.delete_run(self.project, **self.run)
        if alerts:
            names = ("title", "text", "level", "step", "timestamp")
            self._write_alerts(**{f"{name}s": [alert[name] for alert in alerts] for name in names})

    def log(self, step: int, values: Mapping[str, Any], when: float) -> None:
        """Write a row, soon."""
        self.rows.append((step, {k: as_shown(v) for k, v in values.items()}, when))
        if time.monotonic() - self.written_at > BATCH_SECONDS:
            self._write(self.rows[:-1], self.config)
            self.rows, self.written_at = self.rows[-1:], time.monotonic()

    def alert(self, level: str, title: str, text: str, wait: float) -> None:
        """Write an alert."""
        step = self.rows[-1][0] if self.rows else 0
        now = datetime.now(UTC).isoformat()
        told = {"titles": [title], "texts": [text], "levels": [level.lower()]}
        self._write_alerts(**told, steps=[step], timestamps=[now])

    def finish(self, record: RunRecord) -> None:
        """Write what is outstanding, and the summary into the configuration."""
        self._write(self.rows, {**self.config, "summary": plain(record.summary)})

    def holds(self, record: RunRecord) -> bool:
        """Whether nobody removed the run."""
        run_id = record.environment["run_id"]
        return "summary" in (storage_of_trackio().get_run_config(self.project, run_id=run_id) or {})

    def _write(self, rows: list[Row], config: Mapping[str, Any]) -> None:
        storage_of_trackio().bulk_log(
            project=self.project,
            **self.run,
            config=config,
            steps=[step for step, _, _ in rows],
            metrics_list=[values for _, values, _ in rows],
            timestamps=[datetime.fromtimestamp(when, UTC).isoformat() for _, _, when in rows],
        )

    def _write_alerts(self, **alerts: Any) -> None:
        storage_of_trackio().bulk_alert(self.project, **self.run, **alerts)


def storage_of_trackio() -> Any:
    """Import trackio, late: it takes seconds."""
    from trackio.sqlite_storage import SQLiteStorage

    return SQLiteStorage


def as_shown(value: Any) -> Any:
    """Return a value as the dashboard shows it: a list as a histogram."""
    if isinstance(value, list):
        return {"_type": "trackio.histogram", "bins": list(range(len(value) + 1)), "values": value}
    return value


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as they come back from JSON."""
    made: dict[str, Any] = json.loads(json.dumps(dict(values), default=str))
    return made
