"""The file operations of a run directory: whole or not at all, and durable.

Whatever a run writes goes through these functions. None of them follows a symbolic link, but
`open_to_read`, which opens what people name; a full disk is reported with the path, and tests can
stop, fail or count each one.
"""

from __future__ import annotations

import errno
import math
import os
import pwd
import re
import shutil
import signal
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from uuid import uuid4

from altcore.environment import CRASH_AT
from altcore.errors import AltcoreError, BadInput, FailedDisk, NoSpace, UnreadableFile
from altcore.log import log

HALF_WRITTEN = ".tmp"
"""The end of the name of a file that is being written, which nobody else takes for one."""
LEFT_BEHIND = 3600.0
"""Seconds after which a file is half written for good: its writer was killed."""

_OWN_HALF = re.compile(r"\..+\.[0-9a-f]{12}" + re.escape(HALF_WRITTEN))
_cleaned: set[Path] = set()
"""Folders in which this process looked for such files."""
_told: set[int] = set()
"""Devices of which it was told that they sync no folders."""
_passed: Counter[str] = Counter()
_NOT_SYNCED = errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS
"""With which a file system says that it syncs no folders, as some of CIFS and FUSE."""
_NO_SPACE = {
    errno.ENOSPC: "no space left",
    errno.EDQUOT: "no space left within the quota",
    errno.EFBIG: "no space left within the limit on a file's size (ulimit -f)",
    errno.EROFS: "a read-only file system",
}
_NO_FILE = {
    *(errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENAMETOOLONG),
    *(errno.EINVAL, errno.EFBIG),
}
"""With which the system, or `read_file`, says that there is no such file, or none to be read."""
TRY_AGAIN = "it stays as it is: give the permission, or try again"
_FAILED = {errno.EIO, errno.EREMOTEIO, errno.ENODEV, errno.ESTALE, errno.ETIMEDOUT}


def crash_point(name: str) -> None:
    """Kill the process here if ALTCORE_CRASH_AT says so: ``name``, or ``name:k`` the k-th time.

    The name ``any`` means every point. For tests of what a killed run leaves behind.
    """
    asked = os.environ.get(CRASH_AT)
    if not asked:
        return
    wanted, _, count = asked.partition(":")
    if wanted in (name, "any"):
        _passed[wanted] += 1
        if _passed[wanted] == int(count or 1):
            os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def no_space_named(path: Path, needed: int = 0) -> Iterator[None]:
    """Turn a full or read-only disk into `NoSpace`, naming the path and the bytes needed, if known.

    Raises `AltcoreError` for another error of a descriptor, which knows no path, and `FailedDisk`
    if it is the device or the server that failed.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_SPACE:
            has_failed = error.errno in _FAILED
            if error.errno is None or (error.filename is not None and not has_failed):
                raise
            kind = FailedDisk if has_failed else AltcoreError
            raise kind(f"{path} cannot be written: {error.strerror}") from error
        is_counted = needed and error.errno != errno.EROFS
        needs = f" ({needed} bytes needed)" if is_counted else ""
        raise NoSpace(f"{_NO_SPACE[error.errno]} to write {path}{needs}") from error


def open_to_write(path: Path, flags: int = os.O_TRUNC) -> int:
    """Open a file that may be new; returns its descriptor. A symbolic link is not followed.

    With ``os.O_RDWR`` it can be read by it, too; without, a pipe that nobody reads is an `OSError`.
    Raises `AltcoreError` if the process has too many open files.
    """
    crash_point(f"open {path.name}")
    own = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe would wait for its reader
    mode = 0 if flags & os.O_RDWR else os.O_WRONLY
    return _open(path, mode | os.O_CREAT | own | flags, "write")


def _open(path: str | Path, flags: int, doing: str) -> int:
    """Open a file; if the process has too many, which is not the file's fault, say so."""
    try:
        return os.open(path, flags, 0o666)
    except OSError as error:
        _check_open_files(path, error, doing)
        raise


def write(descriptor: int, data: bytes | memoryview) -> None:
    """Write all of ``data``."""
    crash_point("write")
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def fsync(descriptor: int) -> None:
    """Make what was written durable."""
    crash_point("fsync")
    os.fsync(descriptor)


def truncate(descriptor: int, length: int) -> None:
    """Cut a file to ``length`` bytes."""
    crash_point("truncate")
    os.ftruncate(descriptor, length)


def rename(path: Path, target: Path) -> None:
    """Give a file or folder another name; a file of that name is replaced.

    Raises `OSError` if a pipe, a socket or a device has the name: none can be put back.
    """
    crash_point(f"rename {target.name}")
    status = path.lstat()
    with suppress(FileNotFoundError):
        if stat.S_IFMT(target.lstat().st_mode) not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
            raise OSError(errno.EINVAL, f"{target.name} is not a regular file", str(target))
    try:
        path.replace(target)
    except FileNotFoundError:
        # NFS may ask its server twice, which knows no such file the second time.
        if not (os.path.lexists(target) and os.path.samestat(status, target.lstat())):
            raise


def make_folder(path: Path) -> None:
    """Make a folder that is not there yet, with those above it."""
    crash_point(f"mkdir {path.name}")
    path.mkdir(parents=True)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that it holds; it may be gone already.

    An interrupt ends it after that.
    """
    crash_point(f"remove {path.name}")
    if path.is_dir() and not path.is_symlink():
        try:
            shutil.rmtree(path, ignore_errors=True)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
    else:
        path.unlink(missing_ok=True)


def link(path: Path, target: Path) -> None:
    """Give a file a second name; where the file system cannot, copy it."""
    crash_point(f"link {target.name}")
    try:
        target.hardlink_to(path)
    except OSError:
        shutil.copyfile(path, target, follow_symlinks=False)


def write_file(path: Path, data: bytes | memoryview, *, synced: bool = True) -> None:
    """Write a file of this name, replacing what it held; durable if ``synced``."""
    descriptor = open_to_write(path)
    try:
        write(descriptor, data)
        if synced:
            fsync(descriptor)
    finally:
        os.close(descriptor)


def half_written(path: Path) -> Path:
    """Return a name for a file until it is whole: no other writer has it."""
    return path.with_name(f".{path.name}.{uuid4().hex[:12]}{HALF_WRITTEN}")


def replace_file(path: Path, data: bytes | memoryview, *, synced: bool = True) -> None:
    """Replace a file at once or not at all; the folder is left to the caller to sync.

    Of several writers at a time the last one wins.
    """
    temporary = half_written(path)
    with no_space_named(path, len(data)):
        try:
            write_file(temporary, data, synced=synced)
            rename(temporary, path)
        except OSError:
            remove(temporary)
            raise
    if path.parent not in _cleaned:
        _cleaned.add(path.parent)
        _remove_left_behind(path)


def _remove_left_behind(path: Path) -> None:
    """Remove what writers left half written beside a file, and were killed long ago."""
    with suppress(OSError):  # another one removes it as well
        now = path.lstat().st_mtime  # by the clock of the file system, as the others
        for old in path.parent.iterdir():
            if _OWN_HALF.fullmatch(old.name) and old.lstat().st_mtime < now - LEFT_BEHIND:
                remove(old)


def write_once(path: Path, data: bytes) -> bool:
    """Write a file at once, if none of this name is there; return whether it was written."""
    temporary = half_written(path)
    with no_space_named(path, len(data)):
        try:
            write_file(temporary, data)
            crash_point(f"link {path.name}")
            try:
                path.hardlink_to(temporary)
            except FileExistsError:
                return False
            except OSError:  # a file system without hard links
                if os.path.lexists(path):
                    return False
                rename(temporary, path)
            return True
        finally:
            remove(temporary)


def is_own_folder(path: Path) -> bool:
    """Whether a path is a folder, and no link to one."""
    return path.is_dir() and not path.is_symlink()


def is_open_at(path: Path, descriptor: int) -> bool:
    """Whether a descriptor is open, and a path leads to its file, with no link."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except OSError:
        return False


def fsync_folder(path: Path) -> None:
    """Make the names in a folder durable; where the file system cannot, it is told once."""
    descriptor = _open(path, os.O_RDONLY | os.O_CLOEXEC, "sync")
    try:
        fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_SYNCED:
            raise
        if (device := os.fstat(descriptor).st_dev) not in _told:
            _told.add(device)
            problem = "its file system syncs no folders: a loss of power may take the newest files"
            log.warning(f"{path}: {problem}")
    finally:
        os.close(descriptor)


def open_to_read(path: str | Path, flags: int = 0) -> BufferedReader:
    """Open a file that somebody named.

    Raises `OSError` for a folder, a pipe or a device: one waits for its writer, perhaps for ever,
    another has no end, and neither can be read twice.
    Raises `AltcoreError` if the process has too many open files, which is not the file's fault.
    """
    descriptor = _open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags, "read")
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def _check_open_files(path: str | Path, error: OSError, doing: str = "read") -> None:
    if error.errno in (errno.EMFILE, errno.ENFILE):
        problem = f"too many open files to {doing} {path} (ulimit -n)"
        raise AltcoreError(problem) from error


def read_file(path: Path, most: float = math.inf) -> bytes:
    """Return what a file holds, which is ``most`` so many bytes.

    Raises:
        OSError: if there is none, for a symbolic link, a pipe or a device, and if it is larger.
        UnreadableFile: if the system does not give it out.
        AltcoreError: if the process has too many open files, which is not the file's fault.
    """
    with unreadable_named(path), open_to_read(path, os.O_NOFOLLOW) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise OSError(errno.EFBIG, f"it has more than {most} bytes", str(path))
        return file.read()


@contextmanager
def unreadable_named(path: Path) -> Iterator[None]:
    """Turn an error of reading ``path`` that says nothing of what is there into `UnreadableFile`.

    That a file is missing, or is no file, is an `OSError` as before.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NO_FILE:
            raise
        _check_open_files(path, error)
        code = errno.errorcode.get(error.errno or 0, type(error).__name__)
        problem = f"{error.filename or path} cannot be read: {error.strerror or error} ({code})"
        raise UnreadableFile(problem, hint=TRY_AGAIN) from error
    except MemoryError as error:
        problem = f"{path} cannot be read: no memory is left (MemoryError)"
        raise UnreadableFile(problem, hint=TRY_AGAIN) from error


def check_no_links(paths: Iterable[Path]) -> None:
    """Raise `BadInput` if a path is a symbolic link: what is written there would lie elsewhere."""
    for path in paths:
        if path.is_symlink():
            raise BadInput(f"{path} is a symbolic link: a run's files lie in its own directory")


def check_kinds(folder: Path, *, files: Iterable[str], folders: Iterable[str]) -> None:
    """Raise `BadInput` if a name in ``folder`` leads to something of another kind.

    Links where files belong are for `check_no_links` to refuse.
    """
    for name in files:
        path = folder / name
        if path.exists() and not path.is_file() and not path.is_symlink():
            raise BadInput(f"{path} is not a regular file")
    for name in folders:
        if (folder / name).exists() and not (folder / name).is_dir():
            raise BadInput(f"{folder / name} is not a folder")


def check_permissions(folder: Path, *, files: Iterable[str], folders: Iterable[str]) -> None:
    """Raise `UnreadableFile` if this user may not read and write a folder and what lies in it.

    On a read-only file system whoever writes is told.
    """
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        return
    needed = [(folder, _FOLDER), *((folder / name, _FOLDER) for name in folders)]
    for path, rights in (*needed, *((folder / name, _FILE) for name in files)):
        denied = [word for word, right in rights.items() if not os.access(path, right)]
        if denied and os.path.lexists(path):
            status = path.stat()
            user, mode = _user(status.st_uid), status.st_mode & 0o777
            problem = f"{path} may not be {' or '.join(denied)} by this user (EACCES)"
            hint = f"it is of {user}, with the mode {mode:o}: ask for the permission"
            raise UnreadableFile(problem, hint=hint)


_FILE = {"read": os.R_OK, "written": os.W_OK}
_FOLDER = {**_FILE, "entered": os.X_OK}


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def replace_text(path: Path, text: str) -> Path:
    """Write a text file at once or not at all; returns its path. A link there is replaced."""
    replace_file(path, text.encode(), synced=False)
    return path
