"""Short trainings by several workers at a time: whether a machine has enough for all of them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from statistics import fmean

from attrs import evolve, frozen

from altcore.sweep.declared import BUSY, Declared
from altcore.sweep.expand import check_nothing, jobs_of
from altcore.sweep.folder import begin_sweep
from altcore.sweep.job import Job
from altcore.sweep.ledger import Ledger
from altcore.sweep.placing import make_executor, placing_of
from altcore.sweep.preflight import (
    FEWEST,
    Finding,
    machine_memory,
    shortened,
    step_seconds,
    usual,
)
from altcore.sweep.rows import Row, survey
from altcore.sweep.sweep_file import SweepFile

COPIES = 2
"""Short runs of each variant for each slot are as many as this, so that slots overlap."""


@frozen(kw_only=True)
class Limits:
    """What workers side by side may take."""

    memory_gb: float = machine_memory() / 1e9
    """All of them together."""
    slowdown: float = 2.0
    """The time of a step, beside that of a worker alone."""


def side_by_side(
    sweep: SweepFile,
    told: str,
    executor: str,
    sweeps_dir: str,
    alone: Mapping[str, Mapping[str, float]],
    limits: Limits,
) -> Iterator[Finding]:
    """Run short trainings of the variants that trained alone; yield what they took together.

    Args:
        sweep: the sweep.
        told: how it is given to commands.
        executor: which places the workers, as ``local:2``.
        sweeps_dir: workers reach it; a folder is made in it, and removed.
        alone: what was measured of each variant, as `Preflight` has it.
        limits: beyond which it fails.
    """
    placed = make_executor(executor, sweep.executors)
    slots = max(1, getattr(placed, "slots", 1))
    Path(sweeps_dir).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="check-", dir=sweeps_dir) as folder:
        own = evolve(sweep, name="check", preset=None)
        jobs = [job for variant in alone for job in _jobs(sweep, variant, COPIES * slots)]
        ledger, _ = begin_sweep(own, jobs, folder)
        placed.run(placing_of(own, ledger, executor, lambda _: None))
        yield from _findings(ledger, told, alone, limits, sweep.declared)


def _jobs(sweep: SweepFile, variant: str, count: int) -> Iterator[Job]:
    from altcore.engine import counted_in_steps

    first = jobs_of(sweep, check_nothing, only=variant)[0]
    config = shortened(counted_in_steps(first.train_config("", {})), FEWEST).to_plain()
    plain = {key: value for key, value in config.items() if key not in ("name", "runs_dir")}
    for i in range(count):
        yield evolve(first, name=f"{variant}-{i}", config=plain)


def _findings(
    ledger: Ledger,
    told: str,
    alone: Mapping[str, Mapping[str, float]],
    limits: Limits,
    declared: Declared,
) -> Iterator[Finding]:
    rows = survey(ledger)
    again = f"altcore sweep check {told} --resources --executor"
    failed = [row for row in rows if row.exit is None or not row.exit.is_complete]
    for row in failed[:1]:
        error = row.exit.error if row.exit else "it was not run"
        yield Finding(what="side by side", told=f"{row.name}: {error}", remedy=f"{again} local:1")
    memory = _memory(ledger, rows)
    count, taken = len(memory), sum(memory) / 1e9
    fewer = f"{again} local:{max(1, count - 1)}"
    yield Finding(
        what="side by side: memory",
        told=f"{count} workers take {taken:.2f} GB (limit {limits.memory_gb:.4g} GB)",
        remedy="" if taken <= limits.memory_gb else fewer,
    )
    slower = [
        values / alone[variant]["step_seconds"]
        for variant in alone
        if (values := _step_seconds(ledger, variant)) is not None
    ]
    if slower:
        yield Finding(
            what="side by side: time",
            told=f"a step takes {fmean(slower):.2f} times as long (limit {limits.slowdown:g})",
            remedy="" if fmean(slower) <= limits.slowdown else fewer,
        )
    used = [row.exit.used[BUSY] for row in rows if row.exit and BUSY in row.exit.used]
    if used:
        idle = declared.idle(fmean(used))
        yield Finding(
            what="side by side: GPU",
            told=idle or f"busy {fmean(used):.0f} % of the time",
            remedy=f"{again} local:{count + 1}" if idle else "",
        )


def _memory(ledger: Ledger, rows: Iterable[Row]) -> list[float]:
    """Return the bytes that each worker took at most."""
    by_worker: dict[int, float] = {}
    for row in rows:
        last = ledger.standing(row.name).last
        if last is not None and row.exit is not None:
            used = row.exit.used.get("peak_memory_bytes", 0.0)
            pid = last.lease.process.pid
            by_worker[pid] = max(by_worker.get(pid, 0.0), used)
    return list(by_worker.values())


def _step_seconds(ledger: Ledger, variant: str) -> float | None:
    runs = [ledger.run_of(n) for n in ledger.names() if n.rpartition("-")[0] == variant]
    found = [usual(taken) for run in runs if (taken := step_seconds(run))]
    return fmean(found) if found else None
