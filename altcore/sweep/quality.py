"""Which runs hold values outside their ranges, and which limits of the sweep file are passed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from altcore.builtin_types import duration, to_json
from altcore.errors import BadInput, shown
from altcore.formats import digest
from altcore.runs import METRICS, damaged_lines, read_lines
from altcore.sweep.kept import of_accepted
from altcore.sweep.ledger import Ledger, State
from altcore.sweep.limits import Alerts, Range
from altcore.sweep.rows import Row
from altcore.sweep.values import Values


def outside(
    ledger: Ledger, rows: Sequence[Row], checks: Mapping[str, Range]
) -> dict[str, dict[str, str]]:
    """Return what is not within its range, by job and name, of the completed runs of ``rows``."""
    if not checks:
        return {}

    def read(name: str) -> tuple[dict[str, str], bool]:
        try:
            return _problems(Values(ledger.run_of(name)), checks), True
        except BadInput as error:
            return {"unknown": f"since {error.problem}"}, False

    found = of_accepted(ledger, "checks.json", digest(to_json(checks)), read)
    completed = (row.name for row in rows if row.state is State.COMPLETED)
    return {name: found[name] for name in completed if found.get(name)}


def _problems(values: Values, checks: Mapping[str, Range]) -> dict[str, str]:
    found = {}
    if damaged := damaged_lines(values.run / METRICS):
        numbers = ", ".join(map(str, damaged[:3])) + (", ..." if len(damaged) > 3 else "")
        found[METRICS] = f"damaged in {'lines' if len(damaged) > 1 else 'line'} {numbers}"
    for name, limits in checks.items():
        problem = _problem(values.all(name), limits)
        if problem:
            found[name] = problem
    return found


def _problem(values: Sequence[Any], limits: Range) -> str:
    """Return what is wrong with the values of a name, nothing if all are within the range."""
    low = -math.inf if limits[0] is None else limits[0]
    high = math.inf if limits[1] is None else limits[1]
    numbers = [v for v in values if v is not None]
    if not numbers:
        return "no value"
    for value in numbers:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"{shown(value)} is no number"
        if not low <= value <= high:  # NaN is not, either
            return f"{value:.6g}"
    return ""


def alerts_of(ledger: Ledger, rows: Sequence[Row], alerts: Alerts, now: float) -> list[str]:
    """Return a line for each limit that the jobs passed.

    Args:
        ledger: of the sweep.
        rows: all jobs.
        alerts: the limits.
        now: seconds since the epoch, for jobs that go on.
    """
    completed = [row for row in rows if row.state is State.COMPLETED]
    failed = [row for row in rows if row.state is State.FAILED]
    collapsed = [row for row in completed if row.is_collapsed]
    found = [
        *_share(failed, [*completed, *failed], "ended jobs failed", alerts.failed),
        *_share(collapsed, completed, "completed runs collapsed", alerts.collapsed),
    ]
    for row in rows if alerts.minutes is not None else ():
        seconds = row.seconds + (0.0 if row.began is None else max(0.0, now - row.began))
        if alerts.minutes is not None and seconds > 60 * alerts.minutes:
            epochs = _epochs(ledger, row) if alerts.epochs is not None else None
            if epochs is not None and alerts.epochs is not None and epochs >= alerts.epochs:
                continue
            limit = duration(60 * alerts.minutes)
            so_far = "" if row.began is None else " so far"
            told = "" if epochs is None else f", and is at epoch {epochs:.3g}"
            found.append(f"{row.name} took {duration(seconds)}{so_far} (limit {limit}){told}")
    return found


def accepted_collapses(rows: Sequence[Row]) -> list[str]:
    """Return a line for each run that collapsed and is a result, if a collapse is none any more."""
    told = "collapsed and was accepted, before collapse_is was failure: it stays a result"
    return [
        f"{row.name} {told}, unless you remove its run"
        for row in rows
        if row.state is State.COMPLETED and row.is_collapsed
    ]


def _epochs(ledger: Ledger, row: Row) -> float | None:
    """Return the epochs that a job's run has completed, if that is known."""
    run: Path | None = ledger.run_of(row.name)
    if row.state is not State.COMPLETED:
        last = ledger.standing(row.name).last
        run = last.run_directory(row.name) if last else None
    with suppress(BadInput):
        lines = read_lines(run / METRICS) if run else []
        return next((line["epoch"] for line in reversed(lines) if "epoch" in line), None)
    return None


def _share(of: Sequence[Row], all_: Sequence[Row], what: str, limit: float | None) -> list[str]:
    if limit is None or not all_ or len(of) <= limit * len(all_):
        return []
    share = 100 * len(of) / len(all_)
    return [f"{len(of)} of {len(all_)} {what}: {share:.1f} % (limit {100 * limit:g} %)"]
