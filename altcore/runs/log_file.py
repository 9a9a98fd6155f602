"""A .jsonl file that a run appends to. It knows its length and hash, as checkpoints record them."""

from __future__ import annotations

import hashlib
import os
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
        file = cls(path, durable.open_to_write(path, os.O_APPEND))
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
            return os.lseek(self._descriptor, 0, os.SEEK_END) == self.length
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
        return None if size == self.length else f"has {size} bytes, not the {self.length} written"

    def append(self, data: bytes) -> None:
        """Append to the file, readable at once; all of it or, if an error is raised, nothing."""
        with durable.no_space_named(self.path, len(data)):
            try:
                durable.write(self._descriptor, data)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self._descriptor, self.length)
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
        first = self.path.with_name(f"{self.path.name}{DAMAGED}")
        aside, number = first, 2
        while os.path.lexists(aside):
            aside, number = first.with_name(f"{first.name}-{number}"), number + 1
        durable.replace_file(aside, data)
        durable.fsync_folder(aside.parent)
        return aside

    def _replace(self, data: bytes) -> None:
        """Let the file hold something else, at once."""
        durable.replace_file(self.path, data)
        os.close(self._descriptor)
        self._descriptor = durable.open_to_write(self.path, os.O_APPEND)
        self._opened = os.fstat(self._descriptor)
        self._is_synced = False
        self._read()

    def close(self) -> None:
        """Close the file."""
        if self.is_open:
            os.close(self._descriptor)


def has_lost_lines(file: Path, recorded: Mapping[str, Any], step: int) -> bool:
    """Whether `LogFile.cut` could not put a file back as it was after ``step``."""
    if begins_as(file, recorded):
        return False
    if not file.exists():
        return True
    kept, _ = lines_until(durable.read_file(file), file.name, step)
    kept = kept[: recorded["bytes"]]
    return len(kept) < recorded["bytes"] or hashlib.sha256(kept).hexdigest() != recorded["sha256"]
