"""The identity of a run: its configuration, formats' values, data and code.

A study identifies its runs by it. After a change, the changed runs are new ones beside the old.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from attrs import fields_dict

from altcore.config import TrainConfig
from altcore.engine import choose_device
from altcore.errors import BadInput
from altcore.formats import BlockFormat, Format, digest, format_digest
from altcore.registry import HOOK_KINDS, find

NAMES = ("name", "label", "project", "tags", "runs_dir")
"""Keys of the configuration that say what a run is called, and nothing of its numbers."""
JUST_NOW = 2.0
"""Seconds in which a file may change again without a new time of change."""


def identity(config: TrainConfig, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that decides a run's numbers, as plain data.

    ``facts`` are those of the workload, its data included.
    """
    left_out = (*NAMES, "format_digests", "format_origins")  # each format has its digest
    keys = {k: getattr(config, k) for k in fields_dict(TrainConfig) if k not in left_out}
    return {
        "config": plain({**keys, "device": choose_device(config.device).type}),
        "workload": plain(facts),
        "files": dict(files(config.settings)),
        "code": code(config),
    }


def plain(value: Any) -> Any:
    """Return ``value`` as JSON can write it; a format by its name and digest."""
    if isinstance(value, Format | BlockFormat):
        return {"format": value.name, "sha256": format_digest(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


# Data ------------------------------------------------------------------------------------------


def files(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each setting that names a file or folder, with the digest of its contents."""
    for text in sorted(set(_texts(settings))):
        try:
            path = Path(text).expanduser()
            exists = bool(text) and path.exists()
        except (OSError, ValueError, RuntimeError):
            continue  # no path: too long, a null byte, the home of nobody
        if exists:
            try:
                yield text, contents(path)
            except OSError as error:
                raise BadInput(f"{path} cannot be read: {error.strerror}") from error


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part)


def contents(path: Path) -> str:
    """Return the SHA-256 of a file, or of all files in a folder that are not hidden."""
    if not path.is_dir():
        return _file(path)
    return digest({str(p.relative_to(path)): _file(p) for p in _within(path)})


def _within(folder: Path) -> Iterator[Path]:
    for root, names, found in os.walk(folder):
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
def _read(path: str, *_: int) -> str:
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# Code ------------------------------------------------------------------------------------------


def code(config: TrainConfig) -> dict[str, Any]:
    """Return versions and source digests of altcore and of the plugins in the run."""
    kinds = [("workload", config.workload), ("optimizer", config.optimizer)]
    entries = [find(name, (kind,)) for kind, name in kinds]
    entries += [find(name, HOOK_KINDS) for name in config.plugins]
    made = {
        f"{e.kind} {e.name}": [e.origin, e.value, source(e.value.partition(":")[0].strip())]
        for e in entries
    }
    return {"altcore": [version("altcore"), source("altcore")], "torch": version("torch"), **made}


@cache
def source(module: str) -> str:
    """Return the digest of a module's source, together with the whole package around it."""
    top = import_module(module.partition(".")[0])
    folders: Iterable[str] = getattr(top, "__path__", ())
    # A module that is not a package is one file, or none at all.
    parts = [*folders] or [getattr(top, "__file__", None) or ""]
    return digest([contents(Path(part)) for part in parts if part])
