"""Files that people name: an export, a picture, a configuration."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from altcore.durable import fsync_folder, replace_file
from altcore.errors import BadInput
from altcore.run_files import CHECKPOINTS, ENVIRONMENT, FILES

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
    """Raise `BadInput` if something else than a regular file has the name, or a run has it.

    To replace a device would take it from the whole machine, and a link would be lost.
    """
    check_beside_record(path)
    with suppress(OSError):  # of what cannot be looked at, writing tells
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode):
            kind = _KINDS.get(stat.S_IFMT(mode), "a device")
            hint = "name a regular file, or one that is not there yet"
            raise BadInput(f"{path} is {kind}, and no file to write to", hint=hint)


def check_beside_record(path: Path) -> None:
    """Raise `BadInput` if a file or folder of this name belongs to the record of a run.

    The run's own reports, and other files in its directory, do not.
    """
    place = Path(os.path.realpath(path))
    for run in place.parents:
        name = place.relative_to(run).parts[0]
        if name in (CHECKPOINTS, *FILES) and _is_run(run):
            raise BadInput(
                f"{path} is in the record of the run {run.name}: {name}",
                hint="write it elsewhere",
            )


def _is_run(folder: Path) -> bool:
    # A loop of somebody has a config.yaml beside its checkpoints, too.
    with suppress(OSError):
        return (folder / CHECKPOINTS).is_dir() and (folder / ENVIRONMENT).is_file()
    return False
