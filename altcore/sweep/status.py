"""How a sweep stands: counts, what is left, what is wrong, and what it used."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from attrs import evolve, field, frozen

from altcore.sweep.changes import told_absent
from altcore.sweep.declared import BUSY, GPU_MEMORY, Declared
from altcore.sweep.ledger import Ledger, State
from altcore.sweep.quality import accepted_collapses, alerts_of, outside
from altcore.sweep.rows import Row, survey
from altcore.sweep.sweep_file import SweepFile


@frozen(kw_only=True)
class Status:
    """A sweep as it stands."""

    rows: Sequence[Row]
    outside: Mapping[str, Mapping[str, str]] = field(factory=dict)
    """Values outside their range, by job and name."""
    alerts: Sequence[str] = ()

    @property
    def counts(self) -> dict[str, int]:
        """How many jobs are in each state."""
        found = Counter(row.state for row in self.rows)
        return {state.value: found[state] for state in State}

    @property
    def failed(self) -> list[Row]:
        """The jobs that have no result, and are not tried again."""
        return [row for row in self.rows if row.state in (State.FAILED, State.DAMAGED)]

    @property
    def collapsed(self) -> int:
        """How many of the completed runs collapsed."""
        return sum(row.state is State.COMPLETED and row.is_collapsed for row in self.rows)

    @property
    def changed(self) -> int:
        """How many of the completed runs have a setting that a retry changed."""
        return sum(row.state is State.COMPLETED and bool(row.changed) for row in self.rows)

    @property
    def lost(self) -> int:
        """How many jobs are held by a process that is gone."""
        return sum(row.is_lost for row in self.rows)

    @property
    def lacking_run(self) -> int:
        """How many jobs were completed, and wait because the run is gone."""
        return sum(row.lacks_run for row in self.rows)

    @property
    def slots(self) -> int:
        """How many jobs go on at this moment."""
        return self.counts["running"] - self.lost

    @property
    def is_over(self) -> bool:
        """Whether no job is left to run."""
        return not self.counts["waiting"] + self.counts["running"]

    @property
    def mean_seconds(self) -> float | None:
        """Mean time of the completed runs, of all attempts that led to them."""
        known = [row.run_seconds for row in self.rows if row.run_seconds is not None]
        return fmean(known) if known else None

    @property
    def seconds_left(self) -> float | None:
        """Mean time of a run, times those that are left, over the slots; None if unknown."""
        left = self.counts["waiting"] + self.counts["running"]
        if not left:
            return 0.0
        if self.mean_seconds is None or not self.slots:
            return None
        return self.mean_seconds * left / self.slots

    @property
    def failure_rate(self) -> float | None:
        """Share of the ended jobs that failed."""
        ended = self.counts["completed"] + self.counts["failed"]
        return self.counts["failed"] / ended if ended else None

    @property
    def used(self) -> dict[str, float]:
        """What all attempts used: their seconds, those of the CPU, and the most memory of one.

        And how busy GPUs were, in percent, if that was measured.
        """
        ends = [ended for row in self.rows for ended in row.exits]
        found = {"seconds": sum(e.seconds or 0.0 for e in ends)}
        for key, total in (
            ("cpu_seconds", sum),
            ("peak_memory_bytes", max),
            ("peak_gpu_memory_bytes", max),
        ):
            known = [e.used[key] for e in ends if key in e.used]
            if known:
                found[key] = total(known)
        if sampled := [e for e in ends if "gpu_utilization" in e.used]:
            weights = [e.seconds or 0.0 for e in sampled]
            found["gpu_utilization"] = fmean([e.used["gpu_utilization"] for e in sampled], weights)
        return found

    def to_plain(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return {
            "jobs": len(self.rows),
            "counts": self.counts,
            "collapsed": self.collapsed,
            "changed": self.changed,
            "lost": self.lost,
            "lacking_run": self.lacking_run,
            "slots": self.slots,
            "mean_seconds": self.mean_seconds,
            "seconds_left": self.seconds_left,
            "failure_rate": self.failure_rate,
            "used": self.used,
            "outside": self.outside,
            "alerts": list(self.alerts),
            "failed": {row.name: told_failure(row) for row in self.failed},
        }


def status_of(sweep: SweepFile, ledger: Ledger, now: float | None = None) -> Status:
    """Return how a sweep stands, now or at another moment, in seconds since the epoch."""
    rows = survey(ledger)
    alerts = alerts_of(ledger, rows, sweep.limits, time.time() if now is None else now)
    if told := told_absent(sweep, {row.name for row in rows}):
        alerts.append(told)
    if sweep.collapse_is == "failure":
        alerts += accepted_collapses(rows)
    found = Status(rows=rows, outside=outside(ledger, rows, sweep.ranges), alerts=alerts)
    return evolve(found, alerts=[*alerts, *_beyond(sweep.declared, ledger, found)])


def _beyond(declared: Declared, ledger: Ledger, found: Status) -> Iterator[str]:
    """Yield a line for what runs and GPUs did otherwise than the sweep file declares."""
    ends = [(row, row.exit.used) for row in found.rows if row.exit and row.exit.is_complete]
    on_gpu = [(row, used) for row, used in ends if GPU_MEMORY in used]
    variants = {job.name: job.variant for job in ledger.jobs()} if on_gpu else {}
    for row, used in on_gpu:
        for told in declared.passed_by(variants.get(row.name, ""), used, row.run_seconds):
            yield f"{row.name} took {told}"
    if BUSY in found.used and (told := declared.idle(found.used[BUSY])):
        yield told


def told_failure(row: Row) -> dict[str, Any]:
    """Return what is known of a job that failed."""
    return {
        "attempts": row.attempts,
        "status": row.exit.status if row.exit else "",
        "error": row.exit.error if row.exit else "",
        "why": row.why,
    }
