"""Sweeps whose attempts are written by the ledger's own calls: nothing is trained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from altcore.runs import ENVIRONMENT, METRICS, UNFINISHED, Summary, contents, to_json
from altcore.sweep import Exit, Job, Ledger, SweepFile, begin_sweep, jobs_of
from altcore.sweep.attempt import lease


def ledger_of(folder: Path, **keys: Any) -> Ledger:
    """Begin the sweep ``toy`` in a folder for sweeps; ``keys`` are those of its file."""
    asked = SweepFile(name="toy", **{"base": {"gpt.size": "tiny", "max_steps": 6}, **keys})
    return begin_sweep(asked, jobs_of(asked), str(folder))[0]


def record(
    run: Path,
    lines: Sequence[Mapping[str, Any]] = (),
    environment: Mapping[str, Any] | None = None,
    **summary: Any,
) -> None:
    """Write what a run leaves, as far as a sweep reads it."""
    run.mkdir(parents=True, exist_ok=True)
    told = {"name": run.name, "directory": str(run), "status": UNFINISHED, "steps": 6, **summary}
    if lines:
        (run / METRICS).write_text("".join(json.dumps(to_json(line)) + "\n" for line in lines))
    if environment is not None:
        (run / ENVIRONMENT).write_text(json.dumps(environment))
    written = [path for path in (run / METRICS, run / ENVIRONMENT) if path.exists()]
    records = {p.name: {"bytes": p.stat().st_size, "sha256": contents(p)} for p in written}
    (run / "summary.json").write_text(json.dumps(Summary(**told).to_file(records)))


def _attempt(ledger: Ledger, job: Job, changed: Mapping[str, Any]) -> Any:
    last = ledger.standing(job.name).last
    number = last.number + 1 if last else 1
    held = lease(ledger.folder / "jobs" / job.name, number, changed, "local")
    assert held is not None
    return held


def complete(
    ledger: Ledger,
    job: Job,
    status: str = "finished",
    *,
    changed: Mapping[str, Any] | None = None,
    seconds: float = 1.0,
    verdict: str = "learned",
    lines: Sequence[Mapping[str, Any]] = (),
    used: Mapping[str, float] | None = None,
    environment: Mapping[str, Any] | None = None,
    **summary: Any,
) -> None:
    """Let an attempt at a job end with a run."""
    held = _attempt(ledger, job, changed or {})
    run = held.attempt.work / job.name
    record(run, lines, environment, status=status, verdict=verdict, **summary)
    config = deepcopy(dict(job.config))
    for owner, _, key in (name.rpartition(".") for name in changed or {}):
        own = config.setdefault("settings", {}).setdefault(owner, {}) if owner else config
        own[key] = changed[f"{owner}.{key}" if owner else key]
    (run / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    own = {"cpu_seconds": seconds, "peak_memory_bytes": 4e8, "peak_memory_of": "attempt"}
    ended = Exit(status=status, seconds=seconds, verdict=verdict, used={**own, **(used or {})})
    assert ledger.end(job, held, ended).status == status


def fail(ledger: Ledger, job: Job, error: str, status: str = "failed", verdict: str = "") -> None:
    """Let an attempt at a job end without a result."""
    ended = Exit(status=status, error=error, seconds=1.0, verdict=verdict)
    ledger.end(job, _attempt(ledger, job, {}), ended)
