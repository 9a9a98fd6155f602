"""Files that were read and are as they should be: they are read again only if they change.

Ten thousand jobs and runs would take seconds at every look.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import define, field

Stamp = tuple[int, ...]


@define
class Sound:
    """Those of one folder."""

    folder: Path
    known: dict[str, Stamp] = field(init=False, factory=dict)
    """What tells each of them from itself after a change, by its path within the folder."""

    def check(self, path: str, read: Callable[[], Any]) -> None:
        """Call what raises an error for a file, unless it passed and the file is the same since."""
        stamp = stamp_of(f"{self.folder}/{path}")
        if stamp is None or self.known.get(path) != stamp:
            read()
            self.known[path] = stamp or ()


def stamp_of(path: str) -> Stamp | None:
    """Return what tells a file from itself after a change; None if it cannot be seen."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
