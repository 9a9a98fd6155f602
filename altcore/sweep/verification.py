"""Whether a sweep has everything that was asked for, and what is missing, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from attrs import frozen

from altcore.errors import BadInput
from altcore.sweep.audit import audit
from altcore.sweep.changes import changes_of
from altcore.sweep.job import Job
from altcore.sweep.ledger import Ledger, State
from altcore.sweep.sweep_file import Measure
from altcore.sweep.values import Values

WORDS = {"other_data": "of other data", "other_code": "of other code"}


@frozen(kw_only=True)
class Verification:
    """What a sweep has, and what it lacks."""

    completed: Sequence[str]
    """Jobs whose run has all that it must have."""
    failed: Mapping[str, str]
    """Jobs that ended without a result, with the error."""
    incomplete: Mapping[str, str]
    """Jobs whose run lacks a measure or lost lines of its record, with what it lacks."""
    damaged: Mapping[str, str]
    """Jobs of which a file is not what a sweep writes, or not what was accepted, with the file."""
    other_data: Mapping[str, str]
    """Jobs whose run was made of other data than most of those that ask for the same."""
    other_code: Mapping[str, str]
    """Jobs whose run had another format or plugin than most runs that have one of its name."""
    missing: Mapping[str, str]
    """Jobs that have no result, or none any more, and then why."""
    changed: Mapping[str, str]
    """Jobs that the sweep's file does not ask for, or not in this form."""
    data: Sequence[str] = ()
    """Lines on data that are not the same in all runs, as other settings may ask for."""
    unrecorded: Sequence[str] = ()
    """Those that were compared with their job alone; see `Audit.unrecorded`."""

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing."""
        return not any(self.lacks.values())

    @property
    def lacks(self) -> dict[str, Mapping[str, str]]:
        """Every job without all that it must have, by what it is, with the reason."""
        return {
            "failed": self.failed,
            "incomplete": self.incomplete,
            "damaged": self.damaged,
            "other_data": self.other_data,
            "other_code": self.other_code,
            "missing": self.missing,
            "changed": self.changed,
        }

    def __str__(self) -> str:
        count = len(self.completed)
        told = [f"{count}/{count + sum(map(len, self.lacks.values()))} runs completed"]
        for what, group in self.lacks.items():
            if group:
                told.append(f"{len(group)} run{'s' * (len(group) != 1)} {WORDS.get(what, what)}")
        return ", ".join(told)


def verify(
    ledger: Ledger, planned: Sequence[Job] | None, measures: Sequence[Measure]
) -> Verification:
    """Check a sweep.

    Args:
        ledger: of the sweep.
        planned: the jobs that its file asks for; None if that is not known. One that the ledger
            does not have, since its folder was removed, is missing.
        measures: without which a completed run is incomplete.
    """
    audited = audit(ledger)
    plan = changes_of(ledger, ledger.jobs() if planned is None else planned)
    others = {**audited.other_code, **audited.other_data}
    changed = {n: t for n, t in plan.unasked.items() if n not in {**audited.damaged, **others}}
    rows = [row for row in audited.rows if row.name not in changed]
    completed, incomplete = [], {}
    for row in rows:
        if row.state is State.COMPLETED and row.name not in others:
            values = Values(ledger.run_of(row.name))
            lack = "; ".join(filter(None, (lost_lines(values), lacking(values, measures))))
            if lack:
                incomplete[row.name] = lack
            else:
                completed.append(row.name)
    failed = [row for row in rows if row.state is State.FAILED]
    left = [row for row in rows if row.state in (State.WAITING, State.RUNNING)]
    known = {row.name for row in audited.rows}
    unknown = [job.name for job in plan.added if job.name not in known]
    missing = {row.name: row.why if row.lacks_run else "" for row in left}
    return Verification(
        completed=completed,
        failed={row.name: row.exit.error if row.exit else row.why for row in failed},
        incomplete=incomplete,
        damaged=audited.damaged,
        other_data=audited.other_data,
        other_code={n: t for n, t in audited.other_code.items() if n not in audited.other_data},
        data=audited.data,
        unrecorded=audited.unrecorded,
        missing=dict(sorted({**missing, **dict.fromkeys(unknown, "")}.items())),
        changed=changed,
    )


def lost_lines(values: Values) -> str:
    """Return which files a run went on without lines of, or with others; nothing if none."""
    return "; ".join(
        f"{change['what']} was changed, or lost lines, before it went on from step {change['step']}"
        for change in values.summary.get("changes", ())
        if change.get("kind") == "record"
    )


def lacking(values: Values, measures: Sequence[Measure]) -> str:
    """Return what a run lacks of the measures that it must have, nothing if it has all.

    A step whose update was discarded is left out: plugins that look after a step see none of it.
    """
    if not measures:
        return ""
    try:
        lines, steps = values.lines, values.summary["steps"]
        epochs = values.summary["epochs"]
        wanted = [(m.name, m.steps(steps / epochs if epochs else None)) for m in measures]
    except BadInput as error:
        return str(error)
    return "; ".join(filter(None, (_lack(lines, steps, *measure) for measure in wanted)))


def _lack(lines: Sequence[Mapping[str, Any]], steps: int, name: str, every: int | None) -> str:
    at = [line["step"] for line in lines if has(line, name)]
    if not at:
        return f"{name}: no value"
    if every is None:
        return ""
    known = sorted({*at, *(line["step"] for line in lines if line.get("discarded"))})
    # After the last value, one more would have come had the run gone on so long.
    for before, after in pairwise([0, *known, steps + 1]):
        if after - before > every:
            return f"{name}: no value in steps {before + 1} to {after - 1}"
    return ""


def has(line: Mapping[str, Any], name: str) -> bool:
    """Return whether a line of metrics.jsonl has a measure: its own value, or those of layers."""
    return name in line or any(key.startswith(f"{name}/") for key in line)
