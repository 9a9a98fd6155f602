"""Digests of the source of modules."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from altcore.errors import BadInput
from altcore.formats import digest
from altcore.runs.digests import contents


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
