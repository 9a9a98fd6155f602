"""Disks that fail: layers over the functions of `altcore.durable`."""

from __future__ import annotations

import errno
import itertools
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

from altcore import durable

CHANGING = ("open_to_write", "write", "truncate", "rename", "make_folder", "remove", "link")
"""The functions that change a disk."""


def raising(number: int, path: Any = None) -> None:
    """Raise the error of the system with this number."""
    raise OSError(number, os.strerror(number), None if path is None else str(path))


@contextmanager
def full_disk(kind: str, room: int) -> Iterator[list[int]]:
    """Let a disk fail after ``room`` more bytes, new names or changes, until the context ends.

    ``kind`` is bytes, inodes or read-only. Gives a list of what was asked for, one item a call.
    """
    asked: list[int] = []
    real = {name: getattr(durable, name) for name in CHANGING}

    def write(descriptor: int, data: Any) -> None:
        left = room - sum(asked)
        asked.append(len(data))
        if len(data) > left:
            real["write"](descriptor, memoryview(data)[: max(left, 0)])
            raising(errno.ENOSPC)
        real["write"](descriptor, data)

    def naming(name: str) -> Callable[..., Any]:
        def make(path: Path, *rest: Any) -> Any:
            if not path.exists():
                asked.append(1)
                if len(asked) > room:
                    raising(errno.ENOSPC, path)
            return real[name](path, *rest)

        return make

    def changing(name: str) -> Callable[..., Any]:
        def change(first: Any, *rest: Any) -> Any:
            asked.append(1)
            if len(asked) > room:
                raising(errno.EROFS, first if isinstance(first, Path) else None)
            return real[name](first, *rest)

        return change

    layers = {
        "bytes": {"write": write},
        "inodes": {name: naming(name) for name in ("open_to_write", "make_folder")},
        "read-only": {name: changing(name) for name in CHANGING},
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, layer in layers[kind].items():
            patch.setattr(durable, name, layer)
        yield asked


@define(eq=False)
class PowerLoss:
    """Knows what of a folder is durable: the data and the names that were synced.

    The folder itself holds what the system shows until the power goes.
    """

    root: Path
    ids: dict[int, int] = field(factory=dict)
    """The file or folder behind an inode's number, which the system gives out again."""
    data: dict[int, bytes] = field(factory=dict)
    """What a file held when it was synced."""
    names: dict[int, dict[str, int]] = field(factory=dict)
    """What a folder held when it was synced."""
    committed: int = -1
    """The step of the newest checkpoint whose name is durable."""
    _count: Iterator[int] = field(factory=itertools.count)

    def identity(self, path: Path | int) -> int:
        """Return which file or folder lies there."""
        number = os.fstat(path).st_ino if isinstance(path, int) else path.stat().st_ino
        if number not in self.ids:
            self.ids[number] = next(self._count)
        return self.ids[number]

    def _note_new(self, path: Path) -> None:
        self.ids.pop(path.stat().st_ino, None)
        kept = self.names if path.is_dir() else self.data
        kept[self.identity(path)] = {} if path.is_dir() else b""  # type: ignore[index]

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Lay this over the functions."""
        real = {n: getattr(durable, n) for n in ("open_to_write", "make_folder", "fsync")}

        def open_to_write(path: Path, *flags: int) -> int:
            was_there = path.exists()
            descriptor: int = real["open_to_write"](path, *flags)
            if not was_there:
                self._note_new(path)
            return descriptor

        def make_folder(path: Path) -> None:
            missing = [p for p in (path, *path.parents) if not p.exists()]
            real["make_folder"](path)
            for made in missing:
                self._note_new(made)

        def fsync(descriptor: int) -> None:
            real["fsync"](descriptor)
            held = Path(f"/proc/self/fd/{descriptor}").read_bytes()
            self.data[self.identity(descriptor)] = held

        def fsync_folder(path: Path) -> None:
            durable.crash_point("fsync")
            self.names[self.identity(path)] = {p.name: self.identity(p) for p in path.iterdir()}
            if path.name == "checkpoints":
                found = [int(p.name[5:]) for p in path.glob("step-????????")]
                self.committed = max([self.committed, *found])

        for layer in (open_to_write, make_folder, fsync, fsync_folder):
            patch.setattr(durable, layer.__name__, layer)

    def leave(self, target: Path, kind: str, draw: random.Random) -> None:
        """Write what a loss of power leaves into a folder that is not there yet.

        ``kind`` says what is left beyond what was synced: nothing, names (all of them, with the
        synced data), or some.
        """
        places = {self.identity(path): path for path in self.root.rglob("*")}
        self._leave(self.identity(self.root), self.root, target, places, kind, draw)

    def _leave(
        self,
        folder: int,
        place: Path | None,
        target: Path,
        places: dict[int, Path],
        kind: str,
        draw: random.Random,
    ) -> None:
        target.mkdir()
        names = self.names.get(folder, {})
        if place is not None and (kind == "names" or (kind == "some" and draw.random() < 0.5)):
            names = {path.name: self.identity(path) for path in place.iterdir()}
        for name, child in names.items():
            path = places.get(child)
            if child in self.names or (path is not None and path.is_dir()):
                self._leave(child, path, target / name, places, kind, draw)
                continue
            data = self.data.get(child, b"")
            if kind == "some" and path is not None:
                now = path.read_bytes()
                if now.startswith(data):
                    data = now[: draw.randint(len(data), len(now))]
            (target / name).write_bytes(data)
