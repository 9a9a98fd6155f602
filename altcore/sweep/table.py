"""The table of a sweep: a row for every job, whatever became of it, and what each column holds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from attrs import evolve, frozen

from altcore.builtin_types import to_json
from altcore.errors import BadInput, shown
from altcore.sweep.audit import audit
from altcore.sweep.job import Job
from altcore.sweep.ledger import Ledger, State
from altcore.sweep.rows import Row
from altcore.sweep.sweep_file import SweepFile
from altcore.sweep.usage import ATTEMPT, WORKER
from altcore.sweep.values import SUMMARY_KEYS, Values

OWN = {
    "job": "the job's name, which is that of its run",
    "variant": "the variant of the sweep file",
    "state": f"where the job is: {', '.join(state.value for state in State)}",
    "collapsed": "whether the run collapsed: that is its result, or why the job failed",
    "attempts": "how many attempts were made",
    "changed": "settings that a retry changed, as JSON; empty if the run is as it was asked for",
    "in_statistics": "whether the run counts: it is completed, and no retry changed a setting",
    "seconds": "wall-clock seconds of all attempts, not those of the summary",
    "peak_memory_bytes": "most memory of the worker's process, in bytes, during what "
    "`peak_memory_of` says",
    "peak_memory_of": f"{ATTEMPT!r}: the last attempt alone; {WORKER!r}: all jobs that its worker "
    "had run until then, where the system cannot begin a maximum anew",
    "peak_gpu_memory_bytes": "most memory that torch allocated on a GPU in the last attempt",
    "gpu_utilization": "mean percentage of time in which the GPU computed, sampled at each "
    "heartbeat of the last attempt; empty if it was not measured: that needs nvidia-ml-py",
}
"""Columns that every table has, beside the factors and those of the sweep file."""
USED = ("peak_memory_bytes", "peak_memory_of", "peak_gpu_memory_bytes", "gpu_utilization")
WHERE = ("name", "directory", "run_id")
"""Keys of a summary that say where a run is, and nothing of it."""
SETTING = "config."
"""Begins the name of a setting, as a run had it. Without it a name is that of a measure."""
DECIMALS = 6


@frozen(kw_only=True)
class Table:
    """Rows by column."""

    columns: Mapping[str, str]
    """What each column holds, in order."""
    factors: Sequence[str]
    values: Sequence[str]
    """The columns that hold what the runs came to."""
    rows: Sequence[Mapping[str, Any]]
    missing: Sequence[str] = ()
    """Names of the sweep file that no completed run has."""

    def types(self) -> dict[str, str]:
        """Return what each column holds by type: number, text, yes or no, JSON, or nothing."""
        return {
            column: _type([row[column] for row in self.rows if row.get(column) is not None])
            for column in self.columns
        }

    def named(self, columns: Mapping[str, str]) -> Table:
        """Return a table of these columns alone: each has the name of one of this table."""
        told = {column: self.columns[of] for column, of in columns.items()}
        rows = [{column: row.get(of) for column, of in columns.items()} for row in self.rows]
        return evolve(self, columns=told, rows=rows)


def table_of(sweep: SweepFile, ledger: Ledger, rows: Sequence[Row] | None = None) -> Table:
    """Return the table of a sweep as it stands, or as an audit found its ``rows``.

    Raises:
        BadInput: for a column of the sweep file that has numbers and text.
    """
    jobs = {job.name: job for job in ledger.jobs()}
    known = audit(ledger).rows if rows is None else rows
    factors = list(dict.fromkeys(key for job in jobs.values() for key in job.factors))
    runs = {
        row.name: Values(ledger.run_of(row.name)) for row in known if row.state is State.COMPLETED
    }
    asked = sweep.columns.values() if isinstance(sweep.columns, Mapping) else sweep.columns
    names = list(dict.fromkeys(asked)) or _scalars(runs.values())
    names = [name for name in names if name not in (*OWN, *factors)]
    settings = [name for name in names if name.startswith(SETTING)]
    head = ("job", "variant")
    columns = {key: OWN[key] for key in head}
    columns |= {key: f"the value of the setting {key}" for key in factors}
    columns |= {key: told for key, told in OWN.items() if key not in head}
    columns |= {name: meaning(name) for name in names}
    names = [name for name in names if name not in settings]
    made, unseen = [], set([*names, *settings] if runs else ())
    for row in known:
        values, job = runs.get(row.name), jobs.get(row.name)
        held = {name: values.all(name) for name in names} if values else {}
        held |= {name: setting_of(name, job, row) for name in settings}
        unseen -= {name for name, all_ in held.items() if all_}
        last = {name: all_[-1] if all_ else None for name, all_ in held.items()}
        made.append({**_own(job, row), **(job.factors if job else {}), **last})
    for name in names:
        _to_numbers(made, name)
    return Table(columns=columns, factors=factors, values=names, rows=made, missing=sorted(unseen))


def setting_of(name: str, job: Job | None, row: Row) -> list[Any]:
    """Return the setting of such a name, as a retry left it; nothing if a job has none."""
    key = name.removeprefix(SETTING)
    owner, _, own = key.rpartition(".")
    config = job.config if job else {}
    known = config.get("settings", {}).get(owner, {}) if owner else config
    return [row.changed[key]] if key in row.changed else [known[own]] if own in known else []


def _own(job: Job | None, row: Row) -> dict[str, Any]:
    is_ended = row.state in (State.COMPLETED, State.FAILED)
    return {
        "job": row.name,
        "variant": job.variant if job else None,
        "state": row.state.value,
        "collapsed": row.is_collapsed if is_ended else None,
        "attempts": row.attempts,
        "changed": dict(row.changed) or None,
        "in_statistics": row.in_statistics,
        "seconds": row.seconds if row.exits else None,
        **{key: row.exit.used.get(key) if row.exit else None for key in USED},
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


def _to_numbers(rows: Sequence[dict[str, Any]], name: str) -> None:
    """Make numbers of those that a column gives as text, unless all of it is text."""
    held = {row["job"]: row[name] for row in rows if row.get(name) is not None}
    read = {job: _number(value) for job, value in held.items()}
    if not any(isinstance(value, int | float) for value in read.values()):
        return
    for job, value in read.items():
        if isinstance(value, str):
            problem = f"{shown(value)} of {job} is no number, and other runs have numbers"
            raise BadInput(problem, key=f"columns.{name}")
    for row in rows:
        if row["job"] in read:
            row[name] = read[row["job"]]


def _number(value: Any) -> Any:
    """Return a number that is given as text; anything else as it is.

    >>> _number("1e-5"), _number("12"), _number("1_2"), _number("E5M2"), _number([1])
    (1e-05, 12, '1_2', 'E5M2', [1])
    """
    for kind in (int, float) if isinstance(value, str) and "_" not in value else ():
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def meaning(name: str) -> str:
    """Return what a column holds that the sweep file names."""
    if name.startswith(SETTING):
        return f"the setting {name.removeprefix(SETTING)} of the run, as a retry left it"
    key, _, within = name.partition(".")
    if key not in SUMMARY_KEYS:
        return f"the last value of the measure {name}"
    return f"{within} of {key}: {SUMMARY_KEYS[key]}" if within else SUMMARY_KEYS[key]


def _type(values: Sequence[Any]) -> str:
    kinds = {
        "yes or no"
        if isinstance(v, bool)
        else "number"
        if isinstance(v, int | float)
        else "text"
        if isinstance(v, str)
        else "JSON"
        for v in values
    }
    return " or ".join(sorted(kinds)) or "nothing"


def cell(value: Any) -> str:
    """Return a value as the table has it: None is empty, lists and mappings are JSON.

    A number has plain decimals: six, or as many as tell it from every other number.

    >>> cell(0.1), cell(1e-5), cell(1.25e-7), cell(3), cell(float("nan"))
    ('0.100000', '0.000010', '0.000000125', '3', 'nan')
    >>> cell(True), cell(None), cell({"a": [1]}), cell("x")
    ('true', '', '{"a": [1]}', 'x')
    """
    if value is None:
        return ""
    if isinstance(value, float) and (plain := Decimal(repr(value))).is_finite():
        whole, _, decimals = f"{plain:f}".partition(".")
        return f"{whole}.{decimals:0<{DECIMALS}}"
    made = to_json(value)
    return made if isinstance(made, str) else json.dumps(made)
