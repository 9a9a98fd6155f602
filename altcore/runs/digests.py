"""Digests of files and folders.

A file of more than 1 GiB is known by its size and 1024 evenly spaced MiB of it, the first and the
last among them, and a folder of more by the sizes of its files and the beginnings of 1024 of them:
reading many GiB would take minutes at every start.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from glob import glob
from itertools import islice
from pathlib import Path
from stat import S_ISDIR

from altcore.durable import open_to_read
from altcore.formats import digest

BLOCK = 1 << 20
BLOCKS = 1024
LINKED = 1 << 21
"""Files behind the links of a folder that are looked at."""
JUST_NOW = 2.0
"""Seconds in which a file may change again without a new time of change."""


def contents(*paths: Path, blocks: int = BLOCKS) -> str:
    """Return the digest of a file, or of all files in folders that are not hidden.

    Args:
        paths: a file, a folder, or several of both.
        blocks: the number of MiB to read at most.

    Raises:
        OSError: if one cannot be read.
    """
    if len(paths) == 1 and not paths[0].is_dir():
        return _file(paths[0], blocks)
    root = os.path.commonpath(paths)
    found = {p: p.stat() for p in sorted(_files(paths, _refuse))}
    names = {p: os.path.relpath(p, root) for p in found}
    sizes = {p: status.st_size for p, status in found.items() if not S_ISDIR(status.st_mode)}
    # Where a link leads that is not followed, as seen from here: all may move together.
    real = os.path.realpath(root)
    links = {names[p]: os.path.relpath(os.path.realpath(p), real) for p in found if p not in sizes}
    if sum(sizes.values()) <= BLOCK * blocks:
        return digest({**{names[p]: _file(p, blocks) for p in sizes}, **links})
    chosen = [*sizes][:: -(-len(sizes) // blocks)] if blocks else []
    beginnings = {names[p]: _beginning(p) for p in chosen}
    return digest({"sizes": {**{names[p]: sizes[p] for p in sizes}, **links}, "files": beginnings})


def shares(groups: Sequence[Sequence[Path]]) -> list[int]:
    """Return how many MiB to read of each of several files and folders that belong together.

    Raises `OSError` if one cannot be read.
    """
    count = len(groups)
    if count == 1 or sum(map(_size, groups)) <= BLOCK * BLOCKS:
        return [BLOCKS] * count
    if count <= BLOCKS:
        return [BLOCKS // count] * count
    return [int(i % -(-count // BLOCKS) == 0) for i in range(count)]


Stamp = tuple[int, int, int] | None
"""Inode, size and time of change; None for a file that is gone."""


def stamps(paths: Iterable[str | Path]) -> dict[str, Stamp]:
    """Return the stamps of 1024 files, and of as many in each folder, by path."""
    found: list[Path] = []
    for path in islice(map(Path, paths), BLOCKS):
        found += islice(_within(path.absolute()), BLOCKS) if path.is_dir() else [path.absolute()]
    return {str(path): _stamp(path) for path in found}


def _stamp(path: Path) -> Stamp:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _beginning(path: Path) -> str:
    with open_to_read(path) as stream:
        return hashlib.sha256(stream.read(BLOCK)).hexdigest()


def named_paths(text: str) -> list[Path]:
    """Return the file or folder that a text names, or all that match it as a pattern with folders.

    A ``~`` and variables of the environment stand for what they mean to a shell.
    """
    try:
        forms = [Path(form).expanduser() for form in (text, os.path.expandvars(text)) if form]
        if found := [path for path in dict.fromkeys(forms) if path.exists()]:
            return found[:1]
        if "/" not in text or {"*", "?", "["}.isdisjoint(text):
            return []
        # It leaves hidden files out, as a shell does.
        return [Path(match) for match in sorted(glob(str(forms[-1])))]  # noqa: PTH207
    except (OSError, ValueError, RuntimeError):
        return []  # no path: too long, a null byte, the home of nobody


def _refuse(error: OSError) -> None:
    raise error


def _files(paths: Iterable[Path], told: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    for path in paths:
        yield from _within(path, told) if path.is_dir() else (path,)


def _size(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in _files(paths, _refuse))


def _within(folder: Path, told: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    """Yield the files in a folder, and the links to folders that are not followed.

    These lead to a folder that was met already, or come after too many files behind links. What
    cannot be listed is ``told``, or left out.
    """
    met, linked, left = {_place(folder, told)}, set[str](), LINKED
    for root, names, found in os.walk(folder, onerror=told, followlinks=True):
        is_linked = root in linked
        shown = (Path(root, name) for name in sorted(found) if not name.startswith("."))
        files = [path for path in shown if path.is_file()]
        yield from files
        left -= len(files) if is_linked else 0
        visible = sorted(n for n in names if not n.startswith(".") and n != "__pycache__")
        names.clear()
        for path in (Path(root, name) for name in visible):
            is_behind, place = is_linked or path.is_symlink(), _place(path, told)
            if place in met or (is_behind and left <= 0):
                yield path
                continue
            met.add(place)
            names.append(path.name)
            linked |= {str(path)} if is_behind else set()


def _place(folder: Path, told: Callable[[OSError], None] | None) -> tuple[int, int] | None:
    """Return device and inode of a folder, None if it is gone."""
    try:
        status = folder.stat()
    except OSError as error:
        if told is not None:
            told(error)
        return None
    return status.st_dev, status.st_ino


def _file(path: Path, blocks: int) -> str:
    """Return a file's digest. Reads an unchanged file only once."""
    status = path.stat()
    read = _read if time.time() - status.st_mtime > JUST_NOW else _read.__wrapped__
    # A tool can set the modification time back, but not the inode's change time.
    times = status.st_mtime_ns, status.st_ctime_ns
    return read(str(path.resolve()), blocks, status.st_ino, status.st_size, *times)


@cache
def _read(path: str, blocks: int, inode: int, size: int, *_: int) -> str:
    with open_to_read(path) as stream:
        if size <= BLOCK * blocks:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        found = hashlib.sha256(f"{size}\n".encode())
        for i in range(blocks):
            stream.seek((size - BLOCK) * i // max(blocks - 1, 1))
            found.update(stream.read(BLOCK))
        return found.hexdigest()
