"""The runbook of a sweep: a line for each error from which a job recovered, for people.

A job's lines are written before its run is published. A worker that dies between both loses none,
and the one after it writes none twice.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from altcore import durable
from altcore.builtin_types import one_line
from altcore.sweep.attempt import Attempt

RUNBOOK = "runbook.md"
HEAD = "# Jobs that recovered: error, and action taken\n\n"
LONGEST = 300
"""Characters of an error."""


def note_recovery(folder: Path, job: str, attempts: Sequence[Attempt]) -> None:
    """Append what each failed attempt was followed by to the sweep's runbook, unless it is there.

    Args:
        folder: of the sweep.
        job: which is about to have a result.
        attempts: at it, in order.
    """
    path = folder / RUNBOOK
    lines: list[str] = []
    for attempt, follower in pairwise(attempts):
        ended = attempt.exit
        if ended is not None and ended.counts:
            error = one_line(ended.error or ended.status)[:LONGEST].replace("`", "'")
            lines.append(f"- **{job}**: `{error}`: {_action(attempt, follower)}\n")
    if not lines:
        return
    durable.write_once(path, HEAD.encode())
    known = path.read_text(errors="replace")
    new = [line for line in lines if line not in known]
    with durable.no_space_named(path):
        descriptor = durable.open_to_write(path, os.O_APPEND)
        try:
            # In one piece: several workers append.
            durable.write(descriptor, "".join(new).encode())
        finally:
            os.close(descriptor)


def _action(attempt: Attempt, follower: Attempt) -> str:
    before = attempt.lease.changed
    changed = [f"{k} {v}" for k, v in follower.lease.changed.items() if before.get(k) != v]
    who = " by people" if attempt.again is not None else ""
    how = f"with {', '.join(changed)}" if changed else "as it was"
    return f"tried again{who} {how}"
