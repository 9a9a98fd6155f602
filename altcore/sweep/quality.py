"""Which runs hold values outside their ranges, and which limits of the sweep file are passed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from altcore import durable
from altcore.builtin_types import digits, duration, to_json
from altcore.errors import BadInput, NoSpace, shown
from altcore.formats import digest
from altcore.runs import read_json
from altcore.sweep.ledger import Ledger, State
from altcore.sweep.limits import Alerts, Range
from altcore.sweep.rows import Row, accepted_runs
from altcore.sweep.values import Values

CACHE = "checked.json"
"""What the checks found in accepted runs, which do not change: may be removed at any time."""


def outside(ledger: Ledger, checks: Mapping[str, Range]) -> dict[str, dict[str, str]]:
    """Return what is not within its range, by job and name, of the accepted runs.

    A run is read once: what was found is kept in a file that may be removed at any time.
    """
    if not checks:
        return {}
    path, asked = ledger.folder / CACHE, digest(to_json(checks))
    kept = _kept(path, asked)
    found, grown = {}, False
    for name, number in accepted_runs(ledger).items():
        known = kept.get(name)
        if known is None or known[0] != number:
            known, grown = [number, _problems(Values(ledger.run_of(name)), checks)], True
        found[name] = known
    if grown:
        # Whoever only looks may have no right to write.
        with suppress(OSError, NoSpace):
            durable.replace_text(path, json.dumps({"checks": asked, "runs": found}))
    return {name: problems for name, (_, problems) in sorted(found.items()) if problems}


def _kept(path: Path, asked: str) -> Mapping[str, Any]:
    with suppress(BadInput):
        held = read_json(path)
        if held.get("checks") == asked and isinstance(held.get("runs"), dict):
            return held["runs"]
    return {}


def _problems(values: Values, checks: Mapping[str, Range]) -> dict[str, str]:
    found = {}
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
            return digits(value)
    return ""


def alerts_of(rows: Sequence[Row], alerts: Alerts, now: float) -> list[str]:
    """Return a line for each limit that the jobs passed.

    Args:
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
            limit = duration(60 * alerts.minutes)
            found.append(f"{row.name} took {duration(seconds)} so far (limit {limit})")
    return found


def _share(of: Sequence[Row], all_: Sequence[Row], what: str, limit: float | None) -> list[str]:
    if limit is None or not all_ or len(of) <= limit * len(all_):
        return []
    share = 100 * len(of) / len(all_)
    return [f"{len(of)} of {len(all_)} {what}: {share:.1f} % (limit {100 * limit:g} %)"]
