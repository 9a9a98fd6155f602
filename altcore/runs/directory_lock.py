"""The lock of a directory: one process writes it, and knows it wherever it is moved."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path
from weakref import WeakSet

from attrs import define, frozen

from altcore import durable
from altcore.errors import BadInput, LostDirectory
from altcore.log import log
from altcore.run_files import LOCK

LOOKS, PAUSE = 5, 0.01
"""How often, and after how many seconds, a lock that somebody else has is tried again."""


class OtherWriter(BadInput):
    """Somebody else writes the directory."""


@frozen(eq=False)
class _Locked:
    """An open file or folder that is locked. A closed descriptor may become that of another one."""

    descriptor: int
    status: os.stat_result

    @property
    def is_open(self) -> bool:
        with suppress(OSError):
            return os.path.samestat(os.fstat(self.descriptor), self.status)
        return False

    def close(self) -> None:
        if self.is_open:  # unless other code closed it
            os.close(self.descriptor)


@define(eq=False)
class DirectoryLock:
    """Locks on a directory itself and on its ``.lock``, until it is released or forgotten.

    Anybody can remove the file, and NFS locks no directory. A forked child has no lock: it would
    go on with what is its parent's.
    """

    who: str
    """Whose it is, as this process tells another writer of its own."""
    _folder: _Locked
    _file: _Locked

    @classmethod
    def take(cls, path: Path, who: str) -> DirectoryLock:
        """Lock a directory. Raises `OtherWriter` if somebody else has it."""
        folder = _locked_folder(path)
        try:
            lock = cls(who, folder, _locked_file(path, folder))
        except BaseException:
            folder.close()
            raise
        _of_this_process.add(lock)
        return lock

    def check_place(self, path: Path) -> None:
        """Raise `LostDirectory` if the path does not lead to the directory that was locked."""
        try:
            found = path.stat()
        except OSError:
            found = None
        if found is None or not os.path.samestat(found, self._folder.status):
            raise LostDirectory(path, self._place())

    def check(self, path: Path) -> None:
        """Take again what was removed, or closed by other code of this process.

        Raises:
            LostDirectory: if the path does not lead to the directory that was locked.
            OtherWriter: if somebody else has a lock by now.
        """
        self.check_place(path)
        if not self._folder.is_open:
            self._folder = _locked_folder(path)
        if not durable.is_open_at(path / LOCK, self._file.descriptor):
            self._file.close()
            self._file = _locked_file(path, self._folder)

    def _place(self) -> Path | None:
        """Return where the directory is now; None if it is removed, or the system does not tell."""
        descriptor = self._folder.descriptor
        if self._folder.is_open and os.fstat(descriptor).st_nlink:
            with suppress(OSError):
                place = Path(f"/proc/self/fd/{descriptor}").readlink()
                return place if place.is_dir() else None
        return None

    def release(self) -> None:
        """Let others write."""
        _of_this_process.discard(self)
        self._file.close()
        self._folder.close()

    def __del__(self) -> None:
        """Release it with the last reference."""
        self._file.close()
        self._folder.close()


_of_this_process: WeakSet[DirectoryLock] = WeakSet()


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


def _locked_folder(path: Path) -> _Locked:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    status = os.fstat(descriptor)
    _lock(descriptor, path, status)
    return _Locked(descriptor, status)


def _locked_file(path: Path, folder: _Locked) -> _Locked:
    descriptor = durable.open_to_write(path / LOCK, os.O_APPEND)
    if not _lock(descriptor, path, folder.status):
        problem = "its file system has no locks, so nothing keeps another process from writing it"
        log.warning(f"{path}: {problem}")
    return _Locked(descriptor, os.fstat(descriptor))


def _lock(descriptor: int, path: Path, folder: os.stat_result) -> bool:
    """Lock what is open; returns whether the file system can. Closed if somebody else has it."""
    try:
        _lock_for_one(descriptor)
    except BlockingIOError as error:
        os.close(descriptor)
        own = [x for x in _of_this_process if os.path.samestat(x._folder.status, folder)]
        who = f"{own[0].who} of this process" if own else "another process"
        raise OtherWriter(f"{path} is being written by {who}") from error
    except OSError:
        return False
    return True


def _lock_for_one(descriptor: int) -> None:
    """Lock what is open; raises `BlockingIOError` if it stays locked."""
    for _ in range(LOOKS):  # `is_being_written` locks it for a moment
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(PAUSE)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _forget() -> None:
    for lock in [*_of_this_process]:
        lock.release()


os.register_at_fork(after_in_child=_forget)
