"""A file that a run writes whole, such as config.yaml: kept in mind, and put back if it changes."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import define, field

from altcore import durable
from altcore.errors import UnreadableFile

DAMAGED = ".damaged"
"""The end of the names of files that are kept aside."""


@define(eq=False)
class HeldFile:
    """What a file holds, and how the file system knows it."""

    data: bytes
    _stamp: tuple[int, ...] | None = field(init=False, default=None)

    @classmethod
    def of(cls, path: Path) -> HeldFile | None:
        """Return a file as it is; None if there is none.

        Raises `UnreadableFile` if the system does not give it out.
        """
        stamp = _stamp(path)
        try:
            held = cls(durable.read_file(path))
        except OSError:
            return None
        held._stamp = stamp
        return held

    @property
    def recorded(self) -> dict[str, Any]:
        """The file's length and hash."""
        return {"bytes": len(self.data), "sha256": hashlib.sha256(self.data).hexdigest()}

    def put_back(self, path: Path) -> str | None:
        """Write the file again if other code changed or removed it; returns what was done."""
        if _stamp(path) == self._stamp:
            return None
        is_there, now = path.exists(), None
        with suppress(UnreadableFile):
            now = HeldFile.of(path)
        done = None
        if now is None or now.data != self.data:
            done = f"{path} was removed while the run wrote, and is written again"
            if is_there:
                aside = keep_damaged(path)
                done = f"{path} was changed while the run wrote: it is put back, and the other file"
                done += f" is {aside.name}"
            durable.replace_file(path, self.data)
            durable.fsync_folder(path.parent)
        self._stamp = _stamp(path)
        return done


def keep_damaged(path: Path) -> Path:
    """Put a file aside that is to be written anew, as FILE.damaged; returns that path."""
    aside = path.with_name(f"{path.name}{DAMAGED}")
    if path.exists():
        if path.is_dir() or aside.is_dir():  # neither replaces the other
            durable.remove(aside)
        durable.rename(path, aside)
    return aside


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    # A tool can set the modification time back, but not the inode's change time.
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
