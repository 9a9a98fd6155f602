"""A .jsonl file that a run appends to. It knows its length and hash, as checkpoints record them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import define, field

from altcore import durable
from altcore.log import log
from altcore.runs.json_lines import without_damage


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

    def _read(self) -> bytes:
        """Take in what the file holds; returns its last byte."""
        self._sha256, self.length, last = hashlib.sha256(), 0, b""
        with self.path.open("rb") as file:
            while piece := file.read(1 << 20):
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
    def has_descriptor(self) -> bool:
        """Whether the descriptor is that of any file: the cheapest sign that nobody closed it."""
        try:
            os.get_inheritable(self._descriptor)
        except OSError:
            return False
        return True

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

    def cut(self, recorded: Mapping[str, Any]) -> bool:
        """Cut the file to a length that `sync` returned; returns whether its beginning is intact.

        One that was altered is named, too.
        """
        if self.length > recorded["bytes"]:
            durable.truncate(self._descriptor, recorded["bytes"])
            self._is_synced = False
        last = self._read()
        is_intact: bool = self._sha256.hexdigest() == recorded["sha256"]
        if not is_intact:
            found = self.length
            if last not in (b"", b"\n"):
                self.append(b"\n")
            log.warning(
                "a record is not as the checkpoint has it: lines before it were changed or lost",
                file=str(self.path),
                bytes=found,
                recorded=recorded["bytes"],
                **self._keep_damage_aside(),
            )
        return is_intact

    def _keep_damage_aside(self) -> dict[str, Any]:
        """Move the lines that no run can have written to FILE.damaged; returns what to tell."""
        whole, damaged = without_damage(durable.read_file(self.path), self.path.name)
        if not damaged:
            return {}
        numbers = sorted(damaged)
        aside = self.path.with_name(f"{self.path.name}.damaged")
        descriptor = durable.open_to_write(aside, os.O_APPEND)
        durable.write(descriptor, b"".join(damaged[number] for number in numbers))
        os.close(descriptor)
        durable.replace_file(self.path, whole)
        os.close(self._descriptor)
        self._descriptor = durable.open_to_write(self.path, os.O_APPEND)
        self._opened = os.fstat(self._descriptor)
        self._read()
        return {"damaged_lines": numbers, "kept_in": aside.name}

    def close(self) -> None:
        """Close the file."""
        if self.is_open:
            os.close(self._descriptor)
