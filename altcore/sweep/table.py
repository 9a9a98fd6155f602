"""The table of a sweep: a row for every job, whatever became of it, and what each column holds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from altcore.builtin_types import to_json
from altcore.sweep.job import Job
from altcore.sweep.ledger import Ledger, State
from altcore.sweep.rows import Row, survey
from altcore.sweep.sweep_file import SweepFile
from altcore.sweep.values import SUMMARY_KEYS, Values

OWN = {
    "job": "the job's name, which is that of its run",
    "variant": "the variant of the sweep file",
    "state": f"where the job is: {', '.join(state.value for state in State)}",
    "collapsed": "whether the result is a collapse",
    "attempts": "how many attempts were made",
    "changed": "settings that a retry changed, as JSON; empty if the run is as it was asked for",
    "in_statistics": "whether the run counts: it is completed, and no retry changed a setting",
    "seconds": "wall-clock seconds of all attempts",
}
"""Columns that every table has, beside the factors and those of the sweep file."""
WHERE = ("name", "directory", "run_id")
"""Keys of a summary that say where a run is, and nothing of it."""


@frozen(kw_only=True)
class Table:
    """Rows by column."""

    columns: Mapping[str, str]
    """What each column holds, in order."""
    factors: Sequence[str]
    values: Sequence[str]
    """The columns that hold what the runs came to."""
    rows: Sequence[Mapping[str, Any]]


def table_of(sweep: SweepFile, ledger: Ledger) -> Table:
    """Return the table of a sweep as it stands."""
    jobs = {job.name: job for job in ledger.jobs()}
    known = [(jobs[row.name], row) for row in survey(ledger) if row.name in jobs]
    factors = list(dict.fromkeys(key for job in jobs.values() for key in job.factors))
    runs = {
        row.name: Values(ledger.run_of(row.name))
        for _, row in known
        if row.state is State.COMPLETED
    }
    names = list(sweep.columns) or _scalars(runs.values())
    names = [name for name in names if name not in (*OWN, *factors)]
    head = ("job", "variant")
    columns = {key: OWN[key] for key in head}
    columns |= {key: f"the value of the setting {key}" for key in factors}
    columns |= {key: told for key, told in OWN.items() if key not in head}
    columns |= {name: meaning(name) for name in names}
    rows = []
    for job, row in known:
        values = runs.get(job.name)
        held = {name: values.last(name) for name in names} if values else {}
        rows.append({**_own(job, row), **job.factors, **held})
    return Table(columns=columns, factors=factors, values=names, rows=rows)


def _own(job: Job, row: Row) -> dict[str, Any]:
    is_completed = row.state is State.COMPLETED
    return {
        "job": job.name,
        "variant": job.variant,
        "state": row.state.value,
        "collapsed": row.is_collapsed if is_completed else None,
        "attempts": row.attempts,
        "changed": dict(row.changed) or None,
        "in_statistics": row.in_statistics,
        "seconds": row.seconds if row.exits else None,
    }


def _scalars(runs: Any) -> list[str]:
    """Return the keys of summaries that hold a number or a text in any run."""
    found = {
        key
        for values in runs
        for key, value in values.summary.items()
        if isinstance(value, str | int | float) and value != ""
    }
    return [key for key in SUMMARY_KEYS if key in found and key not in WHERE]


def meaning(name: str) -> str:
    """Return what a column holds that the sweep file names."""
    key, _, within = name.partition(".")
    if key not in SUMMARY_KEYS:
        return f"the last value of the measure {name}"
    return f"{within} of {key}: {SUMMARY_KEYS[key]}" if within else SUMMARY_KEYS[key]


def cell(value: Any) -> str:
    """Return a value as the table has it: text as it is, anything else as JSON; None is empty.

    >>> cell(0.1), cell(True), cell(None), cell({"a": [1]}), cell("x"), cell(float("nan"))
    ('0.1', 'true', '', '{"a": [1]}', 'x', 'nan')
    """
    if value is None:
        return ""
    plain = to_json(value)
    return plain if isinstance(plain, str) else json.dumps(plain)
