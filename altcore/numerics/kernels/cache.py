"""The cache of compiled kernels: folders that only this user writes, and files that are whole.

A library's name ends in the digest of its contents, so that it is checked before it is loaded,
and it appears in one rename. One process compiles; those that come meanwhile wait for it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PATIENCE = 120  # seconds that a process waits for another one's compiler
_ROOM = 1 << 22  # bytes free: several times a library's size; each try of a compiler takes long
_PAUSE = 0.05  # seconds between two looks at the lock


def folders() -> Iterator[Path]:
    """Yield the folders to try, best first: the user's cache, a temporary one, a private one.

    The last is removed when the iterator is closed.
    """
    with suppress(RuntimeError):  # of a user without a home
        yield Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "altcore"
    yield Path(tempfile.gettempdir()) / f"altcore-{os.geteuid()}"
    with tempfile.TemporaryDirectory(prefix="altcore-") as private:
        yield Path(private)


def fetch(folder: Path, name: str, make: Callable[[Path], Path]) -> Path:
    """Return the library ``name`` in ``folder``; it is made if none there is whole and trusted.

    ``make``: given an empty folder, returns the file that it made there.

    Raises:
        OSError: if the folder cannot be used, or if others may write to it.
        RuntimeError: if another process is making the library, and takes too long.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_private(folder.resolve())
    found = _find(folder, name)
    if found is not None:
        return found
    with _locked(folder / f"{name}.lock"):
        # Another process may have made it while this one waited.
        return _find(folder, name) or _make(folder, name, make)


def _find(folder: Path, name: str) -> Path | None:
    """The library, if nobody else can have written it and nothing of it is missing."""
    for path in folder.glob(f"{name}-*.so"):
        try:
            _check_private(path)
            if path.name == _file_name(name, path):
                return path
        except OSError:
            continue  # it is made again
    return None


def _make(folder: Path, name: str, make: Callable[[Path], Path]) -> Path:
    for broken in folder.glob(f"{name}-*.so"):
        broken.unlink()
    if shutil.disk_usage(folder).free < _ROOM:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = make(Path(scratch))
        made.chmod(0o700)
        _to_disk(made)
        path = made.replace(folder / _file_name(name, made))
    _to_disk(folder)
    return path


def _file_name(name: str, path: Path) -> str:
    return f"{name}-{hashlib.sha256(path.read_bytes()).hexdigest()[:20]}.so"


def _check_private(path: Path) -> None:
    """Raise PermissionError unless only this user and root can write to a folder or file."""
    found = path.lstat()  # a link's own mode is open to everybody
    if found.st_uid not in (0, os.geteuid()):
        raise PermissionError(f"{path} belongs to user {found.st_uid}")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{path} can be written by others")


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes, which ends with the process that holds it."""
    with path.open("a") as file:
        deadline = time.monotonic() + PATIENCE
        while not _is_taken(file.fileno()):
            if time.monotonic() > deadline:
                raise RuntimeError(f"another process has been compiling them for {PATIENCE} s")
            time.sleep(_PAUSE)
        try:
            yield
        finally:
            # By name: a child that was forked meanwhile has the file open, too.
            fcntl.flock(file, fcntl.LOCK_UN)


def _is_taken(handle: int) -> bool:
    """Whether the lock on an open file was free, and is now this process's."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
