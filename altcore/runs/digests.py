"""Digests of files, folders and the source of modules.

A file of more than 1 GiB is known by its size and 1024 evenly spaced MiB of it, the first and the
last among them, and a folder of more by the sizes of its files and the beginnings of 1024 of them:
reading many GiB would take minutes at every start.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

from altcore.durable import open_to_read
from altcore.errors import BadInput
from altcore.formats import digest

BLOCK = 1 << 20
BLOCKS = 1024
JUST_NOW = 2.0
"""Seconds in which a file may change again without a new time of change."""


def contents(path: Path) -> str:
    """Return the digest of a file, or of all files in a folder that are not hidden.

    Raises `OSError` if one cannot be read.
    """
    if not path.is_dir():
        return _file(path)
    sizes = {p: p.stat().st_size for p in sorted(_within(path, _refuse))}
    names = {p: str(p.relative_to(path)) for p in sizes}
    if sum(sizes.values()) <= BLOCK * BLOCKS:
        return digest({names[p]: _file(p) for p in sizes})
    chosen = [*sizes][:: -(-len(sizes) // BLOCKS)]
    beginnings = {names[p]: _beginning(p) for p in chosen}
    return digest({"sizes": {names[p]: size for p, size in sizes.items()}, "files": beginnings})


def stamps(paths: Iterable[str]) -> dict[str, tuple[int, int, int] | None]:
    """Return inode, size and time of change of files, and of up to 1024 in each folder, by path.

    None for a file that is gone.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        path = path.expanduser().absolute()
        found += islice(_within(path), BLOCKS) if path.is_dir() else [path]
    return {str(path): _stamp(path) for path in found}


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _beginning(path: Path) -> str:
    with open_to_read(path) as stream:
        return hashlib.sha256(stream.read(BLOCK)).hexdigest()


def named_path(text: str) -> Path | None:
    """Return the path of the file or folder that a text names, None if there is none."""
    try:
        path = Path(text).expanduser()
        return path if text and path.exists() else None
    except (OSError, ValueError, RuntimeError):
        return None  # no path: too long, a null byte, the home of nobody


def _refuse(error: OSError) -> None:
    raise error


def _within(folder: Path, told: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    """Yield the files in a folder; one within it that cannot be listed is ``told``, or left out."""
    for root, names, found in os.walk(folder, onerror=told):
        names[:] = [n for n in names if not n.startswith(".") and n != "__pycache__"]
        yield from (p for p in (Path(root, f) for f in found) if p.name[0] != "." and p.is_file())


def _file(path: Path) -> str:
    """Return a file's digest. Reads an unchanged file only once."""
    status = path.stat()
    read = _read if time.time() - status.st_mtime > JUST_NOW else _read.__wrapped__
    # A tool can set the modification time back, but not the inode's change time.
    times = status.st_mtime_ns, status.st_ctime_ns
    return read(str(path.resolve()), status.st_ino, status.st_size, *times)


@cache
def _read(path: str, inode: int, size: int, *_: int) -> str:
    with open_to_read(path) as stream:
        if size <= BLOCK * BLOCKS:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        found = hashlib.sha256(f"{size}\n".encode())
        for i in range(BLOCKS):
            stream.seek((size - BLOCK) * i // (BLOCKS - 1))
            found.update(stream.read(BLOCK))
        return found.hexdigest()


def source_digest(place: str, distribution: str | None = None) -> str | None:
    """Return the digest of the source of a package, and of all others of its distribution.

    None if there are no files. Raises `BadInput` if one cannot be read.

    Args:
        place: a module, or ``module:attribute``, whose top-level package is meant.
        distribution: of which it is a part, if any.
    """
    name = re.split("[.:]", place)[0].strip()
    top = import_module(name)
    folders: Iterable[str] = getattr(top, "__path__", ())
    # A module that is not a package is one file, or none at all.
    parts = [part for part in ([*folders] or [getattr(top, "__file__", "")]) if part]
    try:
        others = _installed_by(distribution) - {name} if distribution else ()
        return _source((*parts, *(part for other in sorted(others) for part in _located(other))))
    except OSError as error:
        file = error.filename or f"the source of {name}"
        problem = f"{file} cannot be read: {error.strerror or error}"
        hint = "a run is known by the source of its plugins: give the permission, or try again"
        raise BadInput(problem, hint=hint) from error


@cache
def _source(parts: tuple[str, ...]) -> str | None:
    """Return the digest of files and folders as they were when a module was first asked about."""
    return digest([contents(Path(part)) for part in parts]) if parts else None


@cache
def _installed_by(name: str) -> frozenset[str]:
    """Return the modules that a distribution says it installs at the top, as far as it says so."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        installed = distribution(name)
    except PackageNotFoundError:
        return frozenset()
    listed = (installed.read_text("top_level.txt") or "").split()
    files = [Path(str(file)) for file in installed.files or ()]
    packages = [file.parts[0] for file in files if file.suffix == ".py" and len(file.parts) > 1]
    modules = [file.stem for file in files if file.suffix == ".py" and len(file.parts) == 1]
    names = (name for name in (*listed, *packages, *modules) if name.isidentifier())
    return frozenset(name for name in names if not name.startswith("__editable__"))


def _located(module: str) -> list[str]:
    """Return the folders or the file of a module, without importing it."""
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    file = spec.origin if spec.has_location else None
    return [*(spec.submodule_search_locations or ())] or ([file] if file else [])
