"""Files that people name: an export, a picture, a configuration."""

from __future__ import annotations

import stat
from contextlib import suppress
from pathlib import Path

from altcore.durable import fsync_folder, replace_file
from altcore.errors import BadInput

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


def write_output(path: Path, data: bytes) -> None:
    """Write a file, replacing one of the name, at once or not at all; durable.

    Raises:
        BadInput: if `check_output` does, or the file cannot be written.
        NoSpace: if the disk is full; what was there stays.
    """
    check_output(path)
    try:
        replace_file(path, data)
        fsync_folder(path.parent)
    except OSError as error:
        hint = "" if path.parent.is_dir() else f"there is no folder {path.parent}"
        raise BadInput(f"{path}: cannot be written: {error.strerror}", hint=hint) from error


def check_output(path: Path) -> None:
    """Raise `BadInput` if something else than a regular file has the name.

    To replace a device would take it from the whole machine, and a link would be lost.
    """
    with suppress(OSError):  # of what cannot be looked at, writing tells
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode):
            kind = _KINDS.get(stat.S_IFMT(mode), "a device")
            hint = "name a regular file, or one that is not there yet"
            raise BadInput(f"{path} is {kind}, and no file to write to", hint=hint)
