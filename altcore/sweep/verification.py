"""Whether a sweep has everything that was asked for, and what is missing, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from attrs import frozen

from altcore.errors import BadInput
from altcore.runs import SUMMARY, has_summary
from altcore.sweep.ledger import Ledger, State
from altcore.sweep.rows import survey
from altcore.sweep.sweep_file import Measure
from altcore.sweep.values import Values


@frozen(kw_only=True)
class Verification:
    """What a sweep has, and what it lacks."""

    completed: Sequence[str]
    """Jobs whose run has all that it must have."""
    failed: Mapping[str, str]
    """Jobs that ended without a result, with the error."""
    incomplete: Mapping[str, str]
    """Jobs whose run lacks a measure, with what it lacks."""
    missing: Mapping[str, str]
    """Jobs that have no result, or none any more, and then why."""

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing."""
        return not (self.failed or self.incomplete or self.missing)

    def __str__(self) -> str:
        groups = (self.completed, self.failed, self.incomplete, self.missing)
        told = [f"{len(self.completed)}/{sum(map(len, groups))} runs completed"]
        for group, what in zip(groups[1:], ("failed", "incomplete", "missing"), strict=True):
            if group:
                told.append(f"{len(group)} run{'s' * (len(group) != 1)} {what}")
        return ", ".join(told)


def verify(ledger: Ledger, planned: Sequence[str], measures: Sequence[Measure]) -> Verification:
    """Check a sweep.

    Args:
        ledger: of the sweep.
        planned: names of the jobs that its file asks for. One that the ledger does not have, since
            its folder was removed, is missing.
        measures: without which a completed run is incomplete.
    """
    rows = survey(ledger)
    completed, incomplete = [], {}
    for row in rows:
        if row.state is State.COMPLETED:
            lack = _lack_of(ledger.run_of(row.name), measures)
            if lack:
                incomplete[row.name] = lack
            else:
                completed.append(row.name)
    failed = [row for row in rows if row.state in (State.FAILED, State.DAMAGED)]
    left = [row for row in rows if row.state in (State.WAITING, State.RUNNING)]
    unknown = set(planned) - {row.name for row in rows}
    missing = {row.name: row.why if row.lacks_run else "" for row in left}
    return Verification(
        completed=completed,
        failed={row.name: row.exit.error if row.exit else row.why for row in failed},
        incomplete=incomplete,
        missing=dict(sorted({**missing, **dict.fromkeys(unknown, "")}.items())),
    )


def _lack_of(run: Path, measures: Sequence[Measure]) -> str:
    if not has_summary(run):
        return f"{run / SUMMARY} cannot be read"
    return lacking(Values(run), measures) if measures else ""


def lacking(values: Values, measures: Sequence[Measure]) -> str:
    """Return what a run lacks of the measures that it must have, nothing if it has all.

    A step whose update was discarded is left out: plugins that look after a step see none of it.
    """
    try:
        lines, steps = values.lines, values.summary["steps"]
    except BadInput as error:
        return str(error)
    return "; ".join(filter(None, (_lack(lines, steps, measure) for measure in measures)))


def _lack(lines: Sequence[Mapping[str, Any]], steps: int, measure: Measure) -> str:
    at = [line["step"] for line in lines if has(line, measure.name)]
    if not at:
        return f"{measure.name}: no value"
    if measure.every is None:
        return ""
    known = sorted({*at, *(line["step"] for line in lines if line.get("discarded"))})
    # After the last value, one more would have come had the run gone on so long.
    for before, after in pairwise([0, *known, steps + 1]):
        if after - before > measure.every:
            return f"{measure.name}: no value in steps {before + 1} to {after - 1}"
    return ""


def has(line: Mapping[str, Any], name: str) -> bool:
    """Return whether a line of metrics.jsonl has a measure: its own value, or those of layers."""
    return name in line or any(key.startswith(f"{name}/") for key in line)
