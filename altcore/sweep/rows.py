"""Where every job of a sweep is, read from as few files as that takes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import field, frozen

from altcore import durable
from altcore.errors import BadInput, UnreadableFile
from altcore.runs import METRICS, has_summary, summary_of
from altcore.sweep.acceptance import check_end, check_there, differing
from altcore.sweep.attempt import Attempt, attempts_in
from altcore.sweep.exits import Exit
from altcore.sweep.kept import of_accepted, remembering
from altcore.sweep.ledger import JOBS, Ledger, State
from altcore.sweep.run_time import accepted_of, changed_in, ended_in, seconds_of_run

VERSION = "5"
"""Of what is kept of a row."""


@frozen(kw_only=True)
class Row:
    """A job as it stands."""

    name: str
    state: State
    exits: tuple[Exit, ...] = ()
    is_unreadable: bool = False
    """Whether it is damaged only as far as one can see: a file of it cannot be read now."""
    """Of its attempts that ended, in order; of a completed job the last one is the run's."""
    attempts: int = 0
    why: str = ""
    """What follows an attempt that ended without a result, or what is damaged."""
    changed: Mapping[str, Any] = field(factory=dict)
    """Settings that a retry changed for the accepted run, or else for the last attempt."""
    run_seconds: float | None = None
    """Of a completed job: wall-clock seconds of its run, as `seconds_of_run` counts them."""
    is_lost: bool = False
    """Whether it is held by a process that is gone."""
    began: float | None = None
    """When the attempt that goes on began, by its holder's clock."""

    @property
    def exit(self) -> Exit | None:
        """How its last attempt ended."""
        return self.exits[-1] if self.exits else None

    @property
    def is_collapsed(self) -> bool:
        """Whether its last attempt ended in a collapse: a result, or a failure."""
        return self.exit is not None and (
            self.exit.status == "collapsed" or bool(self.exit.collapse)
        )

    @property
    def lacks_run(self) -> bool:
        """Whether it was completed, and its run is gone: it waits to be made again."""
        return self.state is State.WAITING and self.exit is not None and self.exit.is_complete

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of all its attempts that ended."""
        return sum(e.seconds or 0.0 for e in self.exits)

    @property
    def in_statistics(self) -> bool:
        """Whether its result is one of the experiment that was asked for."""
        return self.state is State.COMPLETED and not self.changed


def survey(ledger: Ledger) -> list[Row]:
    """Return every job as it stands, by name. No file of a job or a run is read twice.

    A run whose job is gone has a row, too, and is damaged.
    """
    with remembering(ledger):
        accepted = of_accepted(ledger, "rows.json", VERSION, lambda name: _completed(ledger, name))
        names = ledger.names()
        left = [name for name in accepted.keys() - set(names) if _is_run(ledger.run_of(name))]
        return [_row(ledger, name, accepted.get(name)) for name in sorted([*names, *left])]


def _is_run(path: Path) -> bool:
    try:
        return has_summary(path)
    except UnreadableFile:
        return True


def row_of(ledger: Ledger, name: str) -> Row:
    """Return a single job as it stands."""
    has_run = durable.is_own_folder(ledger.run_of(name))
    return _row(ledger, name, _completed(ledger, name)[0] if has_run else None)


def _row(ledger: Ledger, name: str, known: Mapping[str, Any] | None) -> Row:
    try:
        if known is None:
            return _read(ledger, name)
        ledger.check_job(name)
    except BadInput as error:
        unread = isinstance(error, UnreadableFile)
        return Row(name=name, state=State.DAMAGED, why=error.problem, is_unreadable=unread)
    return Row(
        name=name,
        state=State.DAMAGED if known["problem"] else State.COMPLETED,
        why=known["problem"],
        is_unreadable=known.get("is_unreadable", False),
        exits=tuple(Exit(**ended) for ended in known["exits"]),
        attempts=known["attempts"],
        changed=known["changed"],
        run_seconds=known["run_seconds"],
    )


def _completed(ledger: Ledger, name: str) -> tuple[dict[str, Any], bool]:
    """Return what the row of a completed job holds, and whether that will stay as it is."""
    run, accepted = ledger.run_of(name), None
    plain: dict[str, Any] = {"exits": [], "attempts": 0, "changed": {}, "run_seconds": None}
    try:
        attempts = attempts_in(ledger.folder / JOBS / name)
        accepted = accepted_of(attempts)
        # Who was late is refused after the run was accepted.
        exits = [
            ended
            for attempt, ended in ended_in(attempts)
            if accepted is None or attempt.number <= accepted.number
        ]
        plain |= {"attempts": len(attempts), "exits": [ended.to_plain() for ended in exits]}
        check_end(run, None if accepted is None else exits[-1].status)
        check_there(run, () if accepted is None else exits[-1].accepted, [METRICS])
        plain |= {"changed": _changed_for(run, ledger, accepted)}
        plain |= {"run_seconds": seconds_of_run(attempts), "problem": ""}
        if accepted is None:
            ended = end_of_run(run)
            plain |= {"run_seconds": ended.seconds}
            plain["exits"].append(ended.to_plain())
    except BadInput as error:
        is_unreadable = isinstance(error, UnreadableFile)
        return {**plain, "problem": str(error), "is_unreadable": is_unreadable}, False
    return plain, accepted is not None


def _changed_for(run: Path, ledger: Ledger, accepted: Attempt | None) -> dict[str, Any]:
    """Return what a retry changed for a run: by its lease, or else by its configuration."""
    if accepted is not None:
        with suppress(BadInput):
            # No retry came before the first attempt.
            return {} if accepted.number == 1 else dict(accepted.lease.changed)
    return differing(run, ledger.job(run.name).config, {})


def end_of_run(run: Path) -> Exit:
    """Return the end of a run whose worker was killed before it could write it down."""
    known = summary_of(run)
    return Exit(status=known["status"], verdict=known["verdict"], seconds=known["seconds"])


def _read(ledger: Ledger, name: str) -> Row:
    standing = ledger.standing(name)
    last = standing.last
    lease = last.lease if last is not None and standing.state is State.RUNNING else None
    return Row(
        name=name,
        state=standing.state,
        exits=tuple(ended for a in standing.attempts if (ended := a.exit) is not None),
        attempts=len(standing.attempts),
        why=standing.decision.why if standing.decision else standing.problem,
        changed=changed_in(last),
        is_lost=bool(lease and lease.process.is_gone()),
        began=lease.began if lease else None,
    )
