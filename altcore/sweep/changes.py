"""A sweep file against the plan that its ledger has: what is new, and what is not as it was."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attrs import frozen

from altcore.errors import BadInput
from altcore.sweep.carry_on import newest_step
from altcore.sweep.job import Job
from altcore.sweep.ledger import Ledger, State
from altcore.sweep.retired import RETIRED

SHOWN = 5


@frozen(kw_only=True)
class Changes:
    """The jobs that a file and a ledger do not have in common."""

    added: Sequence[Job]
    changed: Sequence[str]
    """Names of jobs that would be other runs now."""
    removed: Sequence[str]
    """Names of jobs that the file no longer asks for."""
    reordered: Sequence[Job] = ()
    """The jobs that have another priority now, and are the same runs."""
    damaged: Sequence[str] = ()
    """What is wrong with files of jobs, which are taken for neither."""


def changes_of(ledger: Ledger, jobs: Iterable[Job]) -> Changes:
    """Compare the jobs of a sweep file with those of the ledger."""
    asked = {job.name: job for job in jobs}
    jobs_known, damaged = ledger.read_jobs()
    known = {job.name: job for job in jobs_known}
    both = {name: job for name, job in asked.items() if name in known}
    return Changes(
        added=[job for name, job in asked.items() if name not in known and name not in damaged],
        changed=[n for n, job in both.items() if known[n].digest != job.digest],
        removed=[name for name in known if name not in asked],
        reordered=[job for n, job in both.items() if known[n].priority != job.priority],
        damaged=list(damaged.values()),
    )


def bring_up_to_date(
    ledger: Ledger, jobs: Sequence[Job], *, accept: bool = False, lost_after: float = 60.0
) -> Changes:
    """Add to a ledger what a sweep file has gained; return what differed.

    Args:
        ledger: of the sweep.
        jobs: those of its file.
        accept: whether changed and removed jobs are taken out of the sweep. Their folders and runs
            are kept, under ``retired``.
        lost_after: seconds without a heartbeat after which a job's holder is lost.

    Raises:
        BadInput: naming changed and removed jobs, if these are not accepted; nothing is written. Or
            one that is being run.
    """
    changes = changes_of(ledger, jobs)
    if not accept and (changes.changed or changes.removed):
        told = [
            f"{len(names)} {what}: {', '.join(names[:SHOWN])}{', ...' * (len(names) > SHOWN)}"
            for what, names in (("changed", changes.changed), ("removed", changes.removed))
            if names
        ]
        raise BadInput(
            f"the sweep file asks for other jobs than {ledger.folder} has: {'; '.join(told)}",
            hint=_hint(ledger, [*changes.changed, *changes.removed]),
        )
    old = (*changes.changed, *changes.removed)
    for name in old:  # before any other one is moved
        ledger.end_if_lost(name, lost_after)
    for name in old:
        ledger.retire(name, lost_after)
    ledger.add(jobs)
    for job in changes.reordered:
        ledger.give_priority(job)
    return changes


def _hint(ledger: Ledger, names: Sequence[str]) -> str:
    trained = sum(_is_trained(ledger, name) for name in names)
    if not trained:
        return "--accept-changes accepts it: none of these jobs trained a step, so nothing is lost"
    told = f"{trained} of these jobs trained: give the sweep another name, or accept it with"
    return f"{told} --accept-changes, which keeps their runs under {RETIRED}/"


def _is_trained(ledger: Ledger, name: str) -> bool:
    """Return whether a job has a result, a step that was saved, or a worker that may save one."""
    standing = ledger.standing(name)
    runs = (attempt.run_directory(name) for attempt in standing.attempts)
    is_held = standing.state in (State.COMPLETED, State.RUNNING, State.DAMAGED)
    return is_held or any(newest_step(run) > 0 for run in runs)
