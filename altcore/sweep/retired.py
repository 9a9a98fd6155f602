"""Where a sweep keeps what was made of jobs that it no longer has."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

from altcore import durable
from altcore.sweep.job import Job

RETIRED = "retired"


def place_for(job: Job, parts: Iterable[str], sweep: Path) -> Path:
    """Return a folder of a sweep with room for parts of a job, perhaps one that was begun before.

    Args:
        job: its name and its digest are those of the folder; a number follows if it is taken.
        parts: names of what is to be moved there.
        sweep: the sweep's folder.
    """
    names = list(parts)
    kept = sweep / RETIRED / f"{job.name}-{job.digest[:12]}"
    places = (kept.with_name(f"{kept.name}-{i}") if i else kept for i in itertools.count())
    found = next(p for p in places if not any((p / name).exists() for name in names))
    if not found.exists():
        durable.make_folder(found)
    return found
