"""Where a sweep keeps what was made of jobs that it no longer has."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from pathlib import Path

from altcore import durable

RETIRED = "retired"


def place_for(name: str, told: str, parts: Iterable[str], sweep: Path) -> Path:
    """Return a folder of a sweep with room for parts of a job, perhaps one that was begun before.

    Args:
        name: of the job, and of the folder.
        told: follows the name; it tells the job from others. A number follows if that is taken.
        parts: names of what is to be moved there.
        sweep: the sweep's folder.
    """
    names = list(parts)
    kept = sweep / RETIRED / f"{name}-{told}"
    places = (kept.with_name(f"{kept.name}-{i}") if i else kept for i in itertools.count())
    found = next(p for p in places if not any(os.path.lexists(p / part) for part in names))
    if not found.exists():
        durable.make_folder(found)
    return found
