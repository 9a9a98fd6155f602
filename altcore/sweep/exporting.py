"""A sweep as a table for other programs, with what its columns mean and where it comes from."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from altcore import durable
from altcore.builtin_types import csv_text, to_json
from altcore.errors import BadInput
from altcore.runs import ENVIRONMENT, METRICS, altered, lines_of, read_environment
from altcore.sweep.audit import Audit, audit
from altcore.sweep.changes import Changes, changes_since
from altcore.sweep.ledger import Ledger, State
from altcore.sweep.outputs import (
    FILES,
    LACKING,
    SWEEP,
    jobs_without_result,
    lacking_told,
    remove_earlier,
)
from altcore.sweep.statistics import is_counted, statistics_of
from altcore.sweep.sweep_file import PLACE, STATISTICS, SweepFile, sweep_text
from altcore.sweep.table import Table, cell, table_of

DICTIONARY, SERIES = "README.md", "series"
METADATA = "_metadata.json"
"""Ends the name of the file that says what was exported."""
ORIGIN = (
    *("altcore", "python", "platform", "device", "processor", "threads", "arithmetic"),
    *("git", "libraries", "code"),
)
"""What is told of the environments in which the runs were made."""


@frozen(kw_only=True)
class Exported:
    """A sweep as it was exported."""

    files: Sequence[Path]
    """The files, and the folder of the series if the sweep file names any."""
    missing: Sequence[str]
    """Names in ``columns`` and ``series`` that no completed run has."""
    problems: Mapping[str, str]
    """Jobs that are damaged, runs of other data or code than the rest, and runs of which it is not
    known where they were made, with what is wrong."""
    data: Sequence[str]
    """Lines on data that are not the same in all runs, as other settings may ask for."""
    differing: Sequence[str]
    """In what the environments of the runs differ, by the keys of `ORIGIN`. Other code is a
    problem of the job."""
    lacking: str
    """Which jobs have no result yet, in a sentence; empty if all have one."""
    unasked: str
    """Which jobs the sweep file does not ask for, or not so, in a sentence; empty if none is."""
    others: Sequence[Path]
    """Files in the place of some that an earlier export wrote, and this one did not."""


def export(sweep: SweepFile, ledger: Ledger, out: Path, *, with_changed: bool = False) -> Exported:
    """Write the table of a sweep, its statistics, their dictionary and where they come from.

    Files that an earlier export of the sweep wrote there, and this one does not, are removed.

    Args:
        sweep: the sweep's file.
        ledger: of the sweep.
        out: the folder; made if it is not there.
        with_changed: whether runs are in the statistics whose settings a retry changed.

    Returns:
        What was written, and what was not found.
    """
    found, plan = audit(ledger), changes_since(sweep, ledger)
    whole = table_of(sweep, ledger, found.rows)
    completed = [row.name for row in found.rows if row.state is State.COMPLETED]
    head, means = statistics_of(whole, with_changed=with_changed)
    table, left_out = _table(sweep, whole, with_changed=with_changed)
    changed = {row["job"]: row["changed"] for row in whole.rows if row["changed"]}
    changed = {job: told for job, told in changed.items() if job not in left_out}
    texts = {
        f"{sweep.table}.csv": _csv(table.columns, (list(row.values()) for row in table.rows)),
        f"{STATISTICS}.csv": _csv(head, means),
    }
    series, unseen = _series(sweep, ledger, completed)
    missing, texts = sorted({*whole.missing, *unseen}), {**texts, **series}
    origins, unknown = _origins(ledger, completed)
    lacking = jobs_without_result(found.rows, plan)
    incomplete = lacking_told(lacking, len(completed))
    told = {
        **_metadata(sweep, origins, ledger, table, texts, with_changed=with_changed),
        **_findings(found, plan, whole),
        "left_out": left_out,
        "settings_changed": changed,
        "missing": missing,
        LACKING: lacking,
    }
    args = sweep, table, head, left_out, changed, [incomplete, plan.told_unasked]
    texts[f"{sweep.table}{METADATA}"] = _json(told)
    texts[DICTIONARY] = _dictionary(*args, with_changed=with_changed)
    files, others = _write(sweep, ledger, out, texts)
    return Exported(
        files=files,
        missing=missing,
        problems={**found.damaged, **found.other_code, **found.other_data, **unknown},
        data=found.data,
        differing=[key for key in ORIGIN if key != "code" and _varies(key, origins)],
        lacking=incomplete,
        unasked=plan.told_unasked,
        others=others,
    )


def _write(
    sweep: SweepFile, ledger: Ledger, out: Path, texts: Mapping[str, str]
) -> tuple[list[Path], Sequence[Path]]:
    """Write files by name, in the place of earlier ones; return both as `Exported` has them."""
    for folder in (out, out / SERIES) if sweep.series else (out,):
        if not folder.is_dir():
            durable.make_folder(folder)
    others = remove_earlier(out, sorted(out.glob(f"*{METADATA}")), ledger.folder.name, texts)
    # First the list, so that it names every file that is there.
    for name in sorted(texts, key=lambda name: not name.endswith(METADATA)):
        durable.replace_text(out / name, texts[name])
    files = [path for path in map(out.joinpath, texts) if path.parent == out]
    return files + [out / SERIES] * bool(sweep.series), others


def _table(sweep: SweepFile, whole: Table, *, with_changed: bool) -> tuple[Table, dict[str, str]]:
    """Return the table that is written, and why the jobs that are not in it are left out."""
    if not isinstance(sweep.columns, Mapping):
        return whole.named({column: column for column in whole.columns}), {}
    counted = [row for row in whole.rows if is_counted(row, with_changed)]
    left_out = {
        row["job"]: "a retry changed it" if row["changed"] else row["state"]
        for row in whole.rows
        if not is_counted(row, with_changed)
    }
    return evolve(whole, rows=counted).named(sweep.columns), left_out


def _series(
    sweep: SweepFile, ledger: Ledger, completed: Sequence[str]
) -> tuple[dict[str, str], set[str]]:
    """Return a table for each completed run, the course of its measures, and those in no run."""
    texts, measures = {}, list(sweep.series.values())
    unseen = set(measures)
    for name in completed if measures else ():
        lines = lines_of(ledger.run_of(name), METRICS)
        unseen.difference_update(*lines)
        by_step: dict[int, dict[str, Any]] = {}
        for line in lines:  # an evaluation has one of its own
            if any(m in line for m in measures):
                by_step.setdefault(line["step"], {}).update(line)
        rows = [[own.get(key) for key in (*PLACE, *measures)] for own in by_step.values()]
        texts[f"{SERIES}/{name}.csv"] = _csv([*PLACE, *sweep.series], rows)
    return texts, unseen if texts else set()


def _csv(head: Iterable[str], rows: Iterable[Sequence[Any]]) -> str:
    return csv_text([head, *([cell(value) for value in row] for row in rows)])


def _json(value: Any) -> str:
    return json.dumps(to_json(value), indent=1, allow_nan=False, default=str) + "\n"


def _metadata(
    sweep: SweepFile,
    origins: Sequence[Mapping[str, Any]],
    ledger: Ledger,
    table: Table,
    texts: Mapping[str, str],
    *,
    with_changed: bool,
) -> dict[str, Any]:
    """Return what the table is of, and where its runs were made."""
    return {
        SWEEP: ledger.folder.name,
        "folder": str(ledger.folder),
        "export_date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "altcore": version("altcore"),
        "total_runs": len(table.rows),
        "changed_in_statistics": with_changed,
        "columns": table.columns,
        "column_types": table.types(),
        FILES: {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()},
        "sweep_file": sweep_text(sweep),
        "provenance": origins,
    }


def _findings(found: Audit, plan: Changes, whole: Table) -> dict[str, Any]:
    """Return in what states the jobs are, and what is odd about them."""
    return {
        "states": Counter(row["state"] for row in whole.rows),
        "damaged": found.damaged,
        "other_data": found.other_data,
        "other_code": found.other_code,
        "data": found.data,
        "unrecorded": found.unrecorded,
        "changed": plan.unasked,
    }


def _origins(
    ledger: Ledger, completed: Sequence[str]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return the environments in which the accepted runs were made, with how many each made.

    And the runs whose environment cannot be read, or is not as the run left it, with why.
    """
    found: Counter[str] = Counter()
    unknown: dict[str, str] = {}
    for name in completed:
        run = ledger.run_of(name)
        if problem := altered(run, ENVIRONMENT):
            unknown[name] = problem[ENVIRONMENT]
        try:
            told = read_environment(run)
        except BadInput as error:
            told, unknown[name] = {}, str(error)
        found[json.dumps({key: told.get(key) for key in ORIGIN}, sort_keys=True)] += 1
    return [{"runs": count, **json.loads(text)} for text, count in found.most_common()], unknown


def _varies(key: str, origins: Sequence[Mapping[str, Any]]) -> bool:
    known = {json.dumps(o[key], sort_keys=True) for o in origins if o[key] is not None}
    return len(known) > 1


def _dictionary(
    sweep: SweepFile,
    table: Table,
    head: Sequence[str],
    left_out: Mapping[str, str],
    changed: Mapping[str, Mapping[str, Any]],
    warnings: Sequence[str],
    *,
    with_changed: bool,
) -> str:
    """Return the page that says what each column holds."""
    counted = "also those" if with_changed else "without those"
    empty = {c: sum(row.get(c) is None for row in table.rows) for c in table.columns}
    types = table.types()
    rows = [f"| `{c}` | {types[c]} | {told} | {empty[c]} |" for c, told in table.columns.items()]
    lines = [
        f"# The runs of {sweep.name}",
        "",
        *(line for told in warnings if told for line in (f"**{told}.**", "")),
        f"`{sweep.table}.csv` has a row for each of {_counted(len(table.rows), left_out)}. "
        "What does not apply is empty, and lists and mappings are JSON. A text may look like a "
        'number, as a variant called 007: `pandas.read_csv(FILE, dtype={"variant": str})` reads '
        "it as it is.",
        "",
        "| column | type | | empty in |",
        "|---|---|---|---|",
        *rows,
        "",
        *(f"- left out: {job}, {why}" for job, why in left_out.items()),
        *(f"- a retry changed {job}: {cell(settings)}" for job, settings in changed.items()),
        *([""] if left_out or changed else []),
        f"`{STATISTICS}.csv` has a row for each variant and point of the grid: mean and standard "
        f"deviation of every number over its completed runs, {counted} whose settings a retry "
        "changed. `runs` is how many count, and `collapsed` how many of these collapsed. A mean is "
        "of the `NAME_n` runs that have a finite number, which may be fewer: a run that collapsed "
        f"may have none. Its columns: {', '.join(f'`{c}`' for c in head)}.",
        "",
        *(_dictionary_of_series(sweep) if sweep.series else []),
        f"`{sweep.table}{METADATA}` says which sweep file asked for them, which jobs have no "
        "result, where the runs were made, and the digests of all tables.",
    ]
    return "\n".join([*lines, ""])


def _counted(rows: int, left_out: Mapping[str, str]) -> str:
    total = rows + len(left_out)
    jobs = f"{total} job{'s' * (total != 1)}"
    return f"{rows} of {jobs}" if left_out else jobs


def _dictionary_of_series(sweep: SweepFile) -> list[str]:
    return [
        f"`{SERIES}/JOB.csv` has the course of a completed run: a row for each step with one of "
        "these measures.",
        "",
        "| column | |",
        "|---|---|",
        *(f"| `{column}` | {told} |" for column, told in PLACE.items()),
        *(f"| `{column}` | the measure {name} |" for column, name in sweep.series.items()),
        "",
    ]
