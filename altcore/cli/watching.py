"""Following runs while they go on: their records, again each time that they have grown."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from altcore.runs import RunRecord

LOOK, ASK = 1.0, 30.0
"""Seconds between looks at files, and between questions to a tracker."""


def watched(read: Callable[[], Sequence[RunRecord]]) -> Iterator[Sequence[RunRecord]]:
    """Yield the records of runs at once, and again when they have grown, until all runs are over.

    ``read`` reads them anew.
    """
    from altcore.runs import UNFINISHED

    while True:
        before = time.monotonic()
        records = read()
        seen = _files(records)
        yield records
        if all(record.summary.get("status") != UNFINISHED for record in records):
            return
        is_remote = any(record.directory is None for record in records)
        while True:
            time.sleep(LOOK)
            if _files(records) != seen or (is_remote and time.monotonic() - before > ASK):
                break


def _files(records: Sequence[RunRecord]) -> list[Any]:
    """Return size and time of every file that a run writes."""
    found = []
    for record in records:
        for path in sorted(record.directory.iterdir()) if record.directory else ():
            if path.is_file() and not path.name.endswith(".tmp"):
                stat = path.stat()
                found.append((path, stat.st_size, stat.st_mtime_ns))
    return found
