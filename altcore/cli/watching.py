"""Following runs while they go on: their records, again each time that they have grown."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from altcore.cli.terminal import say

if TYPE_CHECKING:
    from pathlib import Path

    from altcore.runs import RunRecord

LOOK, ASK = 1.0, 30.0
"""Seconds between looks at files, and between questions to a tracker."""


def watched(read: Callable[[], Sequence[RunRecord]]) -> Iterator[Sequence[RunRecord]]:
    """Yield the records of runs at once, and again when they have grown, until all runs are over.

    A run that nobody writes is over, too; that is said. ``read`` reads the records anew.
    """
    from altcore.runs import UNFINISHED

    left: set[Path | None] = set()
    while True:
        before = time.monotonic()
        records = read()
        seen = _files(records)
        yield records
        open_ones = [r for r in records if r.summary.get("status") == UNFINISHED]
        if all(record.directory in left for record in open_ones):
            break
        is_remote = any(record.directory is None for record in records)
        while True:
            time.sleep(LOOK)
            # Looked for before the record is read again: a run that ended by now has a summary.
            left = _left_behind(open_ones)
            is_due = is_remote and time.monotonic() - before > ASK
            if _files(records) != seen or is_due or len(left) == len(open_ones):
                break
    for record in open_ones:
        say(f"{record.name}: killed, or stopped writing")


def _left_behind(records: Sequence[RunRecord]) -> set[Path | None]:
    """Return the directories that no process writes."""
    from altcore.runs import is_being_written

    return {r.directory for r in records if r.directory and not is_being_written(r.directory)}


def _files(records: Sequence[RunRecord]) -> list[Any]:
    """Return size and time of every file that a run writes."""
    found = []
    for record in records:
        for path in sorted(record.directory.iterdir()) if record.directory else ():
            if path.is_file() and not path.name.endswith(".tmp"):
                stat = path.stat()
                found.append((path, stat.st_size, stat.st_mtime_ns))
    return found
