"""A sweep file against the plan that its ledger has: what is new, and what is not as it was."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from attrs import frozen

from altcore.errors import BadInput
from altcore.runs import Change
from altcore.sweep.acceptance import flat
from altcore.sweep.carry_on import newest_step
from altcore.sweep.expand import check_nothing, jobs_of, planned
from altcore.sweep.job import Job
from altcore.sweep.ledger import Ledger, State
from altcore.sweep.retired import RETIRED
from altcore.sweep.sweep_file import SweepFile

SHOWN = 5
OTHER = "the sweep file asks for another run of this name"
NOT_ASKED = "the sweep file does not ask for it"


@frozen(kw_only=True)
class Changes:
    """The jobs that a file and a ledger do not have in common."""

    added: Sequence[Job]
    changed: Sequence[str]
    """Names of jobs that would be other runs now."""
    told_change: str = ""
    """What is other in the first of these."""
    removed: Sequence[str]
    """Names of jobs that the file no longer asks for."""
    reordered: Sequence[Job] = ()
    """The jobs that have another priority now, and are the same runs."""
    damaged: Sequence[str] = ()
    """What is wrong with files of jobs, which are taken for neither."""
    unknown: str = ""
    """Why nobody knows what the file asks for; then the ledger's jobs are taken for that."""

    @property
    def unasked(self) -> dict[str, str]:
        """The jobs of the ledger that the file does not ask for, or not in this form."""
        return {**dict.fromkeys(self.changed, OTHER), **dict.fromkeys(self.removed, NOT_ASKED)}

    @property
    def told_unasked(self) -> str:
        """A sentence that names such jobs; empty if there are none."""
        if self.unknown:
            return f"only the jobs that the sweep has are looked at: {self.unknown}"
        if not self.unasked:
            return ""
        are = "job is not one" if len(self.unasked) == 1 else "jobs are not those"
        told = f"{len(self.unasked)} {are} that the sweep file asks for"
        return f"{told}: {_named([*self.unasked])}"


def changes_since(sweep: SweepFile, ledger: Ledger) -> Changes:
    """Compare a sweep's file, and the one of base keys that it names, as they are now."""
    try:
        return changes_of(ledger, planned(sweep, ledger, check_nothing))
    except BadInput as error:
        return Changes(added=(), changed=(), removed=(), unknown=str(error))


def changes_of(ledger: Ledger, jobs: Iterable[Job]) -> Changes:
    """Compare the jobs of a sweep file with those of the ledger."""
    asked = {job.name: job for job in jobs}
    jobs_known, damaged = ledger.read_jobs()
    known = {job.name: job for job in jobs_known}
    both = {name: job for name, job in asked.items() if name in known}
    changed = [n for n, job in both.items() if known[n].digest != job.digest]
    return Changes(
        added=[job for name, job in asked.items() if name not in known and name not in damaged],
        changed=changed,
        told_change=_difference(known[changed[0]], asked[changed[0]]) if changed else "",
        removed=[name for name in known if name not in asked],
        reordered=[job for n, job in both.items() if known[n].priority != job.priority],
        damaged=list(damaged.values()),
    )


def told_absent(sweep: SweepFile, names: Collection[str]) -> str:
    """Return a sentence on jobs that a sweep's file asks for beside ``names``, if there are any.

    No job of the ledger is read.
    """
    if sweep.study:
        return ""
    try:
        asked = [job.name for job in jobs_of(sweep, check_nothing)]
    except BadInput as error:
        return f"it is not known which jobs the sweep file asks for: {error}"
    gone = [name for name in asked if name not in names]
    there = "job is not there" if len(gone) == 1 else "jobs are not there"
    told = f"{len(gone)} {there} that the sweep file asks for: {_named(gone)}"
    return f"{told} (altcore sweep run adds what is missing)" if gone else ""


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
            f"{len(names)} {what}: {_named(names)}{f' ({how})' if how else ''}"
            for what, names, how in (
                ("changed", changes.changed, changes.told_change),
                ("removed", changes.removed, ""),
            )
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


def _difference(before: Job, now: Job) -> str:
    """Return the keys of two jobs that are not the same, with both values."""
    old, new = ({**flat(job.config), **job.identity, **job.factors} for job in (before, now))
    keys = [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]
    told = [str(Change("configuration", key, old.get(key), new.get(key))) for key in keys]
    more = f"; and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
    return f"{'; '.join(told[:SHOWN])}{more}"


def _named(names: Sequence[str]) -> str:
    return f"{', '.join(names[:SHOWN])}{', ...' * (len(names) > SHOWN)}"


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
