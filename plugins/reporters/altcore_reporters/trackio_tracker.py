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
from altcore_reporters.original_names import names_in_config, names_in_summary
from altcore_reporters.tracking import TrackerReporter
from altcore_reporters.wandb_tracker import PROJECT

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

    project: str | None = setting(
        None, help=f"the project; null is the run's own `project`, else {PROJECT}"
    )
    imports = ("trackio",)
    run: dict[str, str] = field(init=False, factory=dict)
    """What the storage knows the run by: project, name and id."""
    config: dict[str, Any] = field(init=False, factory=dict)
    rows: list[Row] = field(init=False, factory=list)
    """Those that are not written yet, at least the last one."""
    written_at: float = field(init=False, default=0.0)

    def __attrs_post_init__(self) -> None:
        check_installed("trackio")

    def start(self, record: RunRecord) -> None:
        """Begin the run anew; alerts of earlier sessions stay."""
        storage, project = storage_of_trackio(), self._project(record)
        self.address = f"trackio's project {project}"
        run_id = self.id_of(record)
        self.run = {"project": project, "run": record.name, "run_id": run_id}
        # The dashboard groups runs by the first.
        self.config = {"_Group": record.config.get("label"), **plain(record.config)}
        alerts = storage.get_alerts(project, run_id=run_id)
        storage.delete_run(**self.run)
        if alerts:
            names = ("title", "text", "level", "step", "timestamp")
            told = {f"{name}s": [alert[name] for alert in alerts] for name in names}
            storage.bulk_alert(**self.run, **told)

    def log(self, step: int, values: Mapping[str, Any], when: float) -> None:
        """Write a row, soon."""
        self.rows.append((step, {k: as_shown(v) for k, v in values.items()}, when))
        if time.monotonic() - self.written_at > BATCH_SECONDS:
            self._write(self.rows[:-1], self.config)
            self.rows, self.written_at = self.rows[-1:], time.monotonic()

    def alert(self, level: str, title: str, text: str, wait: float) -> None:
        """Write an alert."""
        storage_of_trackio().bulk_alert(
            **self.run,
            titles=[title],
            texts=[text],
            levels=[level.lower()],
            steps=[self.rows[-1][0] if self.rows else 0],
        )

    def finish(self, record: RunRecord) -> None:
        """Write what is outstanding, and the summary into the configuration."""
        summary = plain({**record.summary, **names_in_summary(record)})
        self._write(self.rows, {**self.config, **names_in_config(record), "summary": summary})

    def holds(self, record: RunRecord) -> bool:
        """Whether nobody removed the run."""
        run_id = self.id_of(record)
        config = storage_of_trackio().get_run_config(self._project(record), run_id=run_id)
        return "summary" in (config or {})

    def _project(self, record: RunRecord) -> str:
        return self.project or record.config.get("project") or PROJECT

    def _write(self, rows: list[Row], config: Mapping[str, Any]) -> None:
        storage_of_trackio().bulk_log(
            **self.run,
            config=config,
            steps=[step for step, _, _ in rows],
            metrics_list=[values for _, values, _ in rows],
            timestamps=[datetime.fromtimestamp(when, UTC).isoformat() for _, _, when in rows],
        )


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
