"""The lock of a run's directory: one process writes it, and knows it wherever it is moved."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from attrs import define

from altcore import durable
from altcore.errors import BadInput, LostDirectory

LOCK = ".lock"
_HOLDERS: set[tuple[int, int, int]] = set()
"""Threads that write a folder `alone`, each with the folder's device and inode."""


@define(eq=False)
class DirectoryLock:
    """Locks on the directory itself and on its ``.lock``.

    Anybody can remove the file. NFS locks no directory.
    """

    _file: int
    _folder: int
    _status: os.stat_result
    """Of the directory: a closed descriptor's number may become that of another one."""

    @classmethod
    def take(cls, path: Path) -> DirectoryLock:
        """Lock a directory. Raises `BadInput` if another process has it."""
        folder = _locked_folder(path)
        try:
            return cls(_locked_file(path), folder, os.fstat(folder))
        except BaseException:
            os.close(folder)
            raise

    def check(self, path: Path) -> None:
        """Take again what was removed, or closed by other code of this process.

        Raises:
            LostDirectory: if the path does not lead to the directory that was locked.
            BadInput: if another process has a lock by now.
        """
        try:
            found = path.stat()
        except OSError:
            found = None
        if found is None or not os.path.samestat(found, self._status):
            raise LostDirectory(path, self._place())
        if not self._has_folder():
            self._folder = _locked_folder(path)
        if not durable.is_open_at(path / LOCK, self._file):
            self._file = _locked_file(path)

    def _has_folder(self) -> bool:
        with suppress(OSError):
            return os.path.samestat(os.fstat(self._folder), self._status)
        return False

    def _place(self) -> Path | None:
        """Return where the directory is now; None if it is removed, or the system does not tell."""
        if self._has_folder() and os.fstat(self._folder).st_nlink:
            with suppress(OSError):
                place = Path(f"/proc/self/fd/{self._folder}").readlink()
                return place if place.is_dir() else None
        return None

    def release(self) -> None:
        """Let other processes write."""
        for descriptor in (self._file, self._folder):
            with suppress(OSError):  # other code closed it
                os.close(descriptor)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Let one process or thread at a time write a folder; the others wait.

    Where the file system locks no folder, all go on at once. Raises `BadInput` if it is this thread
    that writes, which would wait for itself.
    """
    descriptor = _opened_folder(path)
    try:
        status = os.fstat(descriptor)
        holder = threading.get_ident(), status.st_dev, status.st_ino
        if holder in _HOLDERS:
            problem = f"{path} is being written by this thread, from within its own save"
            raise BadInput(problem, key="folder")
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        _HOLDERS.add(holder)
        try:
            yield
        finally:
            _HOLDERS.discard(holder)
    finally:
        os.close(descriptor)


def is_being_written(path: Path) -> bool:
    """Whether a process has the lock of a run's directory. It may end, or begin, at any moment."""
    flags = os.O_RDONLY | os.O_CLOEXEC
    for locked in (path, path / LOCK):
        with suppress(OSError):  # it is not there, or cannot be locked: the other one tells
            descriptor = os.open(locked, flags)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            finally:
                os.close(descriptor)
    return False


def _opened_folder(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _locked_folder(path: Path) -> int:
    return _locked(_opened_folder(path), path, BlockingIOError)


def _locked_file(path: Path) -> int:
    return _locked(durable.open_to_write(path / LOCK, os.O_APPEND), path, OSError)


def _locked(descriptor: int, path: Path, taken: type[OSError]) -> int:
    """Lock what is open; an error of the type ``taken`` means that another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except taken as error:
        os.close(descriptor)
        raise BadInput(f"run {path.name} is being written by another process") from error
    except OSError:
        pass  # the file system locks no directory
    return descriptor
