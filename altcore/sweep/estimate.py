"""What a sweep will take, by what was measured: completed runs, or else the steps of a check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any

from attrs import frozen

from altcore import durable
from altcore.errors import BadInput
from altcore.runs import ENVIRONMENT, read_environment
from altcore.sweep.job import Job
from altcore.sweep.ledger import Ledger, State
from altcore.sweep.records import is_number, read_record, record_text
from altcore.sweep.rows import survey

CHECKED = "check.json"
"""What a check measured of each variant, in the sweep's folder."""
HARDWARE = "hardware"
"""The key of what it computed with; all others are numbers."""
MEMORY = ("peak_memory_bytes", "peak_gpu_memory_bytes")


@frozen(kw_only=True)
class Estimate:
    """Time and memory of the jobs that are left."""

    left: int
    seconds: float | None
    """One after another; None if nothing was measured of a variant that has jobs left."""
    memory: Mapping[str, float]
    """The most bytes of a worker, by the names of `MEMORY`."""
    source: str
    """What was measured."""
    hardware: Sequence[str] = ()
    """Where: of runs, that of one of each variant."""
    unmeasured: Sequence[str] = ()
    """Variants that have jobs left, and of which nothing was measured."""
    failed: int = 0
    """Jobs without a result that are not left, since nobody runs them again."""


def estimate_of(ledger: Ledger, jobs: Sequence[Job]) -> Estimate:
    """Return what the jobs will take that have no result, and did not fail."""
    variants = {job.name: job.variant for job in jobs}
    rows = [row for row in survey(ledger) if row.name in variants]
    done = {row.name: row for row in rows if row.state is State.COMPLETED}
    lengths = {job.name: length_of(job) for job in jobs}
    taken: dict[str, list[float]] = {}
    for name, row in done.items():
        if row.run_seconds is not None:
            taken.setdefault(variants[name], []).append(row.run_seconds / lengths[name])
    checked = _checked(ledger)
    rates = {variant: fmean(found) for variant, found in taken.items()}
    measured = rates.keys() | {v for v, known in checked.items() if "seconds" in known}
    used = [row.exit.used for row in done.values() if row.exit] or list(checked.values())
    failed = {row.name for row in rows if row.state in (State.FAILED, State.DAMAGED)}
    left = [job for job in jobs if job.name not in done.keys() | failed]
    variants_left = dict.fromkeys(job.variant for job in left)
    unmeasured = [variant for variant in variants_left if variant not in measured]
    runs = sum(map(len, taken.values()))
    first = {variants[name]: ledger.run_of(name) for name in reversed(done)}
    where = {hardware_of(run) for run in first.values()} if runs else set()
    where |= {told[HARDWARE] for told in checked.values() if HARDWARE in told and not runs}
    return Estimate(
        left=len(left),
        seconds=None
        if unmeasured
        else sum(
            rates[job.variant] * lengths[job.name]
            if job.variant in rates
            else checked_seconds(checked[job.variant], lengths[job.name])
            for job in left
        ),
        memory={key: max(u[key] for u in used if key in u) for key in MEMORY if _any(used, key)},
        source=f"{runs} run{'s' * (runs != 1)}" if runs else "the steps of a check",
        hardware=sorted(where - {""}),
        unmeasured=unmeasured,
        failed=len(failed),
    )


def length_of(job: Job) -> float:
    """Return how long a job is, in epochs or in steps, whichever it is given in."""
    return float(job.config.get("epochs") or job.config.get("max_steps") or 1)


def checked_seconds(known: Mapping[str, Any], length: float) -> float:
    """Return the seconds of a job of a variant, by what a check measured of another one."""
    more = length - known.get("length", length)
    return float(known["seconds"] + more * known.get("length_seconds", 0.0))


def hardware_of(run: Path) -> str:
    """Return what a run computed with, nothing if its record does not say it."""
    with suppress(BadInput):
        told = read_environment(run) if (run / ENVIRONMENT).is_file() else {}
        if told.get("device", "cpu") != "cpu":
            return str(told["device"])
        threads = told.get("threads", 1)
        return (
            f"{told['processor']}, {threads} thread{'s' * (threads != 1)}"
            if told.get("processor")
            else ""
        )
    return ""


def _any(used: Sequence[Mapping[str, Any]], key: str) -> bool:
    return any(key in u for u in used)


def keep_checked(ledger: Ledger, measured: Mapping[str, Mapping[str, Any]]) -> None:
    """Keep what a check measured, by variant, for estimates."""
    ledger.folder.mkdir(parents=True, exist_ok=True)
    known = {**_checked(ledger), **measured}
    durable.replace_text(ledger.folder / CHECKED, record_text(known))


def _checked(ledger: Ledger) -> Mapping[str, Mapping[str, Any]]:
    with suppress(BadInput):  # the next check writes it anew
        return read_record(ledger.folder / CHECKED, _measured) or {}
    return {}


def _measured(known: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
    for key, value in (item for told in known.values() for item in told.items()):
        if not (isinstance(value, str) if key == HARDWARE else is_number(value)):
            raise TypeError
    return known
