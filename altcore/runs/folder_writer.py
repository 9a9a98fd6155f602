"""The one process that writes a folder of checkpoints, for longer than one save."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from weakref import WeakValueDictionary

from attrs import define

from altcore import durable
from altcore.errors import BadInput
from altcore.runs.directory_lock import LOCK


class OtherWriter(BadInput):
    """Another process saves into the folder."""


@define(eq=False)
class FolderWriter:
    """A lock on a folder, which whoever writes it in this process shares.

    It is released when the last of them is gone. A forked child has none: it would go on with what
    is its parent's.
    """

    _status: os.stat_result
    """Of the folder."""
    _file: int | None
    """Its lock file; None in a forked child."""

    @classmethod
    def of(cls, folder: Path) -> FolderWriter:
        """Lock a folder; call it `alone`. Raises `OtherWriter` if another process has it."""
        status = folder.stat()
        writer = _writers.get((status.st_dev, status.st_ino))
        if writer is None:
            writer = cls(status, _locked(folder))
            _writers[status.st_dev, status.st_ino] = writer
        return writer

    def is_at(self, folder: Path) -> bool:
        """Whether a path leads to the folder that was locked."""
        with suppress(OSError):
            return os.path.samestat(folder.stat(), self._status)
        return False

    def release(self) -> None:
        """Let other processes write."""
        if self._file is not None:
            with suppress(OSError):  # other code closed it
                os.close(self._file)
            self._file = None

    def __del__(self) -> None:
        """Release it with the last reference."""
        self.release()


_writers: WeakValueDictionary[tuple[int, int], FolderWriter] = WeakValueDictionary()
"""Those of this process, by device and inode."""


def _locked(folder: Path) -> int:
    file = durable.open_to_write(folder / LOCK, os.O_APPEND)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(file)
        problem = f"another process saves its checkpoints in {folder}"
        hint = "let one process save, or take a folder of its own; load_checkpoint only reads"
        raise OtherWriter(problem, key="folder", hint=hint) from error
    except OSError:
        pass  # the file system has no locks
    return file


def _forget() -> None:
    for writer in [*_writers.values()]:
        writer.release()
    _writers.clear()


os.register_at_fork(after_in_child=_forget)
