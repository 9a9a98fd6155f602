"""The files ``last`` and ``best``, which name the checkpoints that retention left."""

from __future__ import annotations

import re
from pathlib import Path

from altcore import durable
from altcore.errors import UnreadableFile

LAST, BEST = "last", "best"
_REGULAR = re.compile(r"step-\d{8,}")


def point_to(folder: Path, pointer: str, name: str | None) -> None:
    """Let the pointer file (``last`` or ``best``) name a checkpoint; None removes it."""
    file = folder / pointer
    if name is None:
        durable.remove(file)
        return
    if pointed_at(folder, pointer) != name:
        if file.is_dir():
            durable.remove(file)
        # It may be lost with the power: whoever goes on with the run sets it again.
        durable.replace_file(file, name.encode(), synced=False)


def pointed_at(folder: Path, pointer: str) -> str | None:
    """Return the regular checkpoint that a pointer file names; None if it is lost or damaged."""
    try:
        name = durable.read_file(folder / pointer, most=64).decode(errors="replace")
    except (OSError, UnreadableFile):
        return None
    return name if _REGULAR.fullmatch(name) else None
