"""A sweep as a table for other programs, with what its columns mean and where it comes from."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from altcore import durable
from altcore.builtin_types import to_json
from altcore.runs import read_environment
from altcore.sweep.kept import accepted_runs
from altcore.sweep.ledger import Ledger
from altcore.sweep.statistics import statistics_of
from altcore.sweep.sweep_file import SweepFile, sweep_text
from altcore.sweep.table import Table, cell, table_of

TABLE, STATISTICS, DICTIONARY, METADATA = (
    *("runs.csv", "statistics.csv", "README.md", "metadata.json"),
)
ORIGIN = ("altcore", "python", "platform", "device", "git", "libraries", "plugins")
"""What is told of the environments in which the runs were made."""


def export(
    sweep: SweepFile, ledger: Ledger, out: Path, *, with_changed: bool = False
) -> list[Path]:
    """Write the table of a sweep, its statistics, their dictionary and where they come from.

    Args:
        sweep: the sweep's file.
        ledger: of the sweep.
        out: the folder; made if it is not there.
        with_changed: whether runs are in the statistics whose settings a retry changed.

    Returns:
        The files.
    """
    table = table_of(sweep, ledger)
    head, means = statistics_of(table, with_changed=with_changed)
    texts = {
        TABLE: _csv(table.columns, ([row.get(c) for c in table.columns] for row in table.rows)),
        STATISTICS: _csv(head, means),
    }
    texts[METADATA] = _json(_metadata(sweep, ledger, table, texts, with_changed=with_changed))
    texts[DICTIONARY] = _dictionary(sweep, table, head, with_changed=with_changed)
    if not out.is_dir():
        durable.make_folder(out)
    return [durable.replace_text(out / name, text) for name, text in texts.items()]


def _csv(head: Iterable[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([cell(value) for value in row] for row in rows)
    return text.getvalue()


def _json(value: Any) -> str:
    return json.dumps(to_json(value), indent=1, allow_nan=False, default=str) + "\n"


def _metadata(
    sweep: SweepFile,
    ledger: Ledger,
    table: Table,
    texts: Mapping[str, str],
    *,
    with_changed: bool,
) -> dict[str, Any]:
    """Return what the table is of, and where its runs were made."""
    states = Counter(row["state"] for row in table.rows)
    return {
        "sweep": sweep.name,
        "folder": str(ledger.folder),
        "exported": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "altcore": version("altcore"),
        "jobs": len(table.rows),
        "states": dict(states),
        "changed_in_statistics": with_changed,
        "columns": table.columns,
        "sha256": {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()},
        "sweep_file": sweep_text(sweep),
        "made_in": _origins(ledger),
    }


def _origins(ledger: Ledger) -> list[dict[str, Any]]:
    """Return the environments in which the accepted runs were made, with how many each made."""
    found: Counter[str] = Counter()
    for name in accepted_runs(ledger):
        told = read_environment(ledger.run_of(name))
        found[json.dumps({key: told.get(key) for key in ORIGIN}, sort_keys=True)] += 1
    return [{"runs": count, **json.loads(text)} for text, count in found.most_common()]


def _dictionary(sweep: SweepFile, table: Table, head: Sequence[str], *, with_changed: bool) -> str:
    """Return the page that says what each column holds."""
    counted = "also those" if with_changed else "without those"
    empty = {c: sum(row.get(c) is None for row in table.rows) for c in table.columns}
    rows = [f"| `{c}` | {told} | {empty[c]} |" for c, told in table.columns.items()]
    lines = [
        f"# The runs of {sweep.name}",
        "",
        f"`{TABLE}` has a row for each of {len(table.rows)} jobs. What does not apply is empty, "
        "and lists and mappings are JSON.",
        "",
        "| column | | empty in |",
        "|---|---|---|",
        *rows,
        "",
        f"`{STATISTICS}` has a row for each variant and point of the grid: mean and standard "
        f"deviation of every number over its completed runs, {counted} whose settings a retry "
        f"changed. `runs` is how many count. Its columns: {', '.join(f'`{c}`' for c in head)}.",
        "",
        f"`{METADATA}` says which sweep file asked for them, where they were made, and the "
        "digests of both tables.",
    ]
    return "\n".join([*lines, ""])
