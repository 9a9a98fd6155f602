"""A .jsonl file that a run appends to. It knows its length and hash, as checkpoints record them."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import define, field

from altcore import durable
from altcore.log import log
from altcore.runs.held_file import DAMAGED
from altcore.runs.json_lines import lines_until
from altcore.runs.own_checkpoint import begins_as

_LOST = "lines before it were changed or lost"


@define(eq=False)
class LogFile:
    """An open file, positioned at its end."""

    path: Path
    _descriptor: int
    length: int = 0
    _sha256: Any = field(factory=hashlib.sha256)
    _others: int = field(init=False, default=0)
    """Bytes that other code added while the run wrote; below zero if it took some away."""
    _is_synced: bool = False
    _opened: os.stat_result = field(init=False)
    """Of the file: a closed descriptor's number may become that of another one."""

    def __attrs_post_init__(self) -> None:
        self._opened = os.fstat(self._descriptor)

    @classmethod
    def open(cls, path: Path) -> LogFile:
        """Open a file that may be new. A torn last line gets its end, so that it stays alone."""
        if path.is_file() and path.stat().st_nlink > 1:  # `cp -l` made a copy, which is to stay
            durable.replace_file(path, durable.read_file(path))
        file = cls(path, _open(path))
        last = file._read()
        if last not in (b"", b"\n"):
            file.append(b"\n")
        return file

    def _read(self, most: int = sys.maxsize) -> bytes:
        """Take in the first bytes that the file holds, all by default; returns the last one."""
        self._sha256, self.length, last = hashlib.sha256(), 0, b""
        with self.path.open("rb") as file:
            while piece := file.read(min(most - self.length, 1 << 20)):
                self._sha256.update(piece)
                self.length += len(piece)
                last = piece[-1:]
        return last

    @property
    def is_open(self) -> bool:
        """Whether the descriptor is still that of the file."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), self._opened)
        except OSError:
            return False

    @property
    def has_its_length(self) -> bool:
        """Whether the file is as long as it was written: the cheapest sign of no harm to it.

        Not if the descriptor was closed.
        """
        try:
            return os.lseek(self._descriptor, 0, os.SEEK_END) == self._size
        except OSError:
            return False

    @property
    def problem(self) -> str | None:
        """What other code did to the file since it was opened; None if nothing."""
        if not self.is_open:
            return "was closed by other code in this process"
        if not durable.is_open_at(self.path, self._descriptor):
            return "was removed or replaced"
        size = os.fstat(self._descriptor).st_size
        return None if size == self._size else f"has {size} bytes, not the {self._size} written"

    @property
    def _size(self) -> int:
        return self.length + self._others

    def put_back(self) -> str | None:
        """Write the file anew if it was removed or replaced; returns what was done, if anything.

        An open file keeps its lines, whatever becomes of its name. If they are not as they were
        written, nothing is done.
        """
        if not self.is_open or durable.is_open_at(self.path, self._descriptor):
            return None
        lines = b""
        with suppress(OSError):  # of a network's file system that has the file no more
            lines = os.pread(self._descriptor, self.length + 1, 0)
        if hashlib.sha256(lines).digest() != self._sha256.digest():
            return None
        done = f"{self.path} was removed while the run wrote, and is written again"
        if os.path.lexists(self.path):
            done = f"{self.path} was replaced while the run wrote: it is put back, and the other "
            done += f"file is {self._named_aside().name}"
        self._replace(lines)
        durable.fsync_folder(self.path.parent)
        return done

    def go_on(self) -> None:
        """Go on with the file as other code left it; what is recorded is still what was written."""
        if not durable.is_open_at(self.path, self._descriptor):
            self._open_again()
        size = os.fstat(self._descriptor).st_size
        if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
            durable.write(self._descriptor, b"\n")
            size += 1
        self._others = size - self.length

    def append(self, data: bytes) -> None:
        """Append to the file, readable at once; all of it or, if an error is raised, nothing."""
        with durable.no_space_named(self.path, len(data)):
            try:
                durable.write(self._descriptor, data)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self._descriptor, self._size)
                raise
        self._sha256.update(data)
        self.length += len(data)
        self._is_synced = False

    def sync(self) -> dict[str, Any]:
        """Make all lines durable; returns the file's length and hash."""
        if not self._is_synced:
            with durable.no_space_named(self.path):
                durable.fsync(self._descriptor)
            self._is_synced = True
        return self.recorded

    @property
    def recorded(self) -> dict[str, Any]:
        """The file's length and hash, as it was written."""
        return {"bytes": self.length, "sha256": self._sha256.hexdigest()}

    def cut(self, recorded: Mapping[str, Any], step: int) -> bool:
        """Cut the file to a length that `sync` returned, after ``step``; returns whether it can be.

        If its beginning is not as it was, the lines up to the step stay, each once. If anything
        goes but lines of later steps, the file as it is is copied to FILE.damaged first.
        """
        whole = self.length
        self._read(recorded["bytes"])
        if self.recorded == {key: recorded[key] for key in self.recorded}:
            if whole > self.length:
                durable.truncate(self._descriptor, self.length)
                self._is_synced = False
            return True
        data = durable.read_file(self.path)
        kept, damaged = lines_until(data, self.path.name, step)
        told: dict[str, Any] = {"damaged_lines": damaged} if damaged else {}
        if not data.startswith(kept) or lines_until(data[len(kept) :], self.path.name, step)[1]:
            told["kept_in"] = self._kept_aside(data).name
        self._replace(kept)
        if is_whole := begins_as(self.path, recorded):
            self._replace(kept[: recorded["bytes"]])
        log.warning(
            "a record is not as the checkpoint has it: "
            + ("its lines are, and are put back" if is_whole else _LOST),
            file=str(self.path),
            bytes=len(data),
            recorded=recorded["bytes"],
            **told,
        )
        return is_whole

    def _kept_aside(self, data: bytes) -> Path:
        """Copy the file to FILE.damaged, or to FILE.damaged-2 and so on; returns the path."""
        aside = self._free_name()
        durable.replace_file(aside, data)
        durable.fsync_folder(aside.parent)
        return aside

    def _named_aside(self) -> Path:
        """Give what has the name of the file another one, whatever it is; returns the path.

        A file keeps its own, too, where there are hard links: one that is to take its place does so
        at once.
        """
        aside = self._free_name()
        if self.path.is_file():
            with suppress(OSError):
                os.link(self.path, aside, follow_symlinks=False)
                return aside
        durable.rename(self.path, aside)
        return aside

    def _free_name(self) -> Path:
        first = self.path.with_name(f"{self.path.name}{DAMAGED}")
        free, number = first, 2
        while os.path.lexists(free):
            free, number = first.with_name(f"{first.name}-{number}"), number + 1
        return free

    def _replace(self, data: bytes) -> None:
        """Let the file hold something else, at once."""
        durable.replace_file(self.path, data)
        self._open_again()
        self._is_synced, self._others = False, 0
        self._read()

    def _open_again(self) -> None:
        self.close()
        self._descriptor = _open(self.path)
        self._opened = os.fstat(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        if self.is_open:
            os.close(self._descriptor)


def _open(path: Path) -> int:
    """Open a file to append to, and to be read when its name leads elsewhere."""
    descriptor = durable.open_to_write(path, os.O_APPEND | os.O_RDWR)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return descriptor


def has_lost_lines(file: Path, recorded: Mapping[str, Any], step: int) -> bool:
    """Whether `LogFile.cut` could not put a file back as it was after ``step``."""
    if begins_as(file, recorded):
        return False
    if not file.exists():
        return True
    kept, _ = lines_until(durable.read_file(file), file.name, step)
    kept = kept[: recorded["bytes"]]
    return len(kept) < recorded["bytes"] or hashlib.sha256(kept).hexdigest() != recorded["sha256"]
