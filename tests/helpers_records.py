"""Records of runs that a test makes up, and runs on the W&B server of `helpers_wandb`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from helpers_wandb import ENTITY, HISTORY, StoredRun, WandbServer

from altcore.plugin import RunRecord, full_summary

Line = Mapping[str, Any]


class Told(RunRecord):
    """A record of what a test says."""

    def __init__(
        self,
        name: str,
        summary: Line | None = None,
        config: Line | None = None,
        metrics: Iterable[Line] = (),
        timings: Iterable[Line] = (),
        run_id: str | None = None,
        code: Mapping[str, str] | None = None,
        files: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(name, "a test")
        self.summary = full_summary({"name": name, **(summary or {})})
        self.config, self.metrics, self.timings = config or {}, list(metrics), list(timings)
        self.environment = {"run_id": run_id} if run_id else {}
        self.environment |= {"files": files} if files else {}
        if code:
            own = {key: {"from": version, "sha256": None} for key, version in code.items()}
            self.environment |= {"code": own}


def put(
    server: WandbServer,
    name: str,
    *,
    config: Line | None = None,
    summary: Line | None = None,
    rows: Iterable[Line] = (),
    files: Mapping[str, str] | None = None,
    state: str = "finished",
    project: str = "altgrad",
) -> StoredRun:
    """Put a run on the server, with the id ``id-NAME``."""
    run = StoredRun(ENTITY, project, f"id-{name}", name)
    run.config = {key: {"value": value} for key, value in (config or {}).items()}
    run.summary = dict(summary or {})
    run.streams[HISTORY] = [json.dumps({"_step": i, **row}) for i, row in enumerate(rows)]
    run.files = {path: text.encode() for path, text in (files or {}).items()}
    run.is_complete, run.exit_code = state != "running", 1 if state == "failed" else 0
    server.runs[run.id] = run
    return run
