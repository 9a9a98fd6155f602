"""Digests of the source of modules."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import import_module
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

from altcore.errors import BadInput
from altcore.formats import digest
from altcore.runs.digests import contents

IMPORT = re.compile(
    r"\bfrom\s+(\w+)[\w.]*\s+import\b|\bimport\s+(\w[\w. ,]*)"
    r"|\b(?:import_module|__import__)\(\s*['\"](\w+)"
)
"""What names a module at the top: an import of it, or a call with its name."""


def source_digest(place: str, distribution: str | None = None) -> str | None:
    """Return the digest of the source of a package, and of all others of its distribution.

    Those are the ones that the distribution lists, and, as an editable installation lists none,
    those in the folder of its project that its source imports.

    None if there are no files. Raises `BadInput` if one cannot be read.

    Args:
        place: a module, or ``module:attribute``, whose top-level package is meant.
        distribution: of which it is a part, if any.
    """
    name = re.split("[.:]", place)[0].strip()
    top = import_module(name)
    folders: Iterable[str] = getattr(top, "__path__", ())
    # A module that is not a package is one file, or none at all.
    own = tuple(part for part in ([*folders] or [getattr(top, "__file__", "")]) if part)
    try:
        return _source(_with_others(name, own, distribution) if distribution else own)
    except OSError as error:
        file = error.filename or f"the source of {name}"
        problem = f"{file} cannot be read: {error.strerror or error}"
        hint = "a run is known by the source of its plugins: give the permission, or try again"
        raise BadInput(problem, hint=hint) from error


@cache
def _source(parts: tuple[str, ...]) -> str | None:
    """Return the digest of files and folders as they were when a module was first asked about."""
    return digest([contents(_on_disk(Path(part))) for part in parts]) if parts else None


def _on_disk(path: Path) -> Path:
    """Return a file or folder, or the archive that it is in."""
    return next((part for part in (path, *path.parents) if part.is_file()), path)


@cache
def _with_others(name: str, own: tuple[str, ...], of: str) -> tuple[str, ...]:
    """Return the files and folders of a module, and of the other modules of its distribution."""
    try:
        installed = distribution(of)
    except PackageNotFoundError:
        return own
    found = {name: own}
    found |= {other: tuple(_located(other)) for other in _listed(installed) - {name}}
    projects = [*_projects(installed), *(Path(part).parent for part in own)]
    left = [*found]
    while left:
        for other in _imported(found[left.pop()]) - found.keys():
            parts = tuple(_located(other))
            if parts and _is_within(Path(parts[0]).parent, projects, of):
                found[other] = parts
                left.append(other)
    others = sorted(found.keys() - {name})
    return (*own, *(part for other in others for part in found[other]))


def _listed(installed: Distribution) -> set[str]:
    """Return the modules that a distribution says it installs at the top, as far as it says so."""
    listed = (installed.read_text("top_level.txt") or "").split()
    files = [Path(str(file)) for file in installed.files or ()]
    packages = [file.parts[0] for file in files if file.suffix == ".py" and len(file.parts) > 1]
    modules = [file.stem for file in files if file.suffix == ".py" and len(file.parts) == 1]
    names = (name for name in (*listed, *packages, *modules) if name.isidentifier())
    return {name for name in names if not name.startswith("__editable__")}


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


# Modules of a project that is installed as it is edited -------------------------------------------


def _projects(installed: Distribution) -> Iterator[Path]:
    """Yield the folder of the project that a distribution was installed from, if it is edited."""
    try:
        origin = json.loads(installed.read_text("direct_url.json") or "{}")
        url = urlsplit(origin["url"] if origin["dir_info"]["editable"] else "")
    except (ValueError, LookupError, TypeError):
        return
    if url.scheme == "file":
        yield Path(unquote(url.path))


def _imported(parts: Iterable[str]) -> set[str]:
    """Return the modules at the top that the source in some files and folders imports."""
    found: set[str] = set()
    for part in (_on_disk(Path(part)) for part in parts):
        for file in part.rglob("*.py") if part.is_dir() else [part]:
            text = file.read_text("utf-8", "replace") if file.suffix == ".py" else ""
            for of, plain, named in IMPORT.findall(text):
                names = (name.split() for name in plain.split(","))
                found |= {of, named, *(words[0].partition(".")[0] for words in names if words)}
    return found - sys.stdlib_module_names - {"", "altcore"}


def _is_within(folder: Path, projects: Iterable[Path], of: str) -> bool:
    """Whether a folder is in a project, and no other distributions are installed there."""
    owners = {re.split(r"-\d|\.egg-info$", info.name)[0] for info in folder.glob("*.*-info")}
    is_shared = any(_plain(owner) != _plain(of) for owner in owners)
    return not is_shared and any(folder.is_relative_to(project) for project in projects)


def _plain(name: str) -> str:
    """Return a distribution's name as all tools spell it."""
    return re.sub("[-_.]+", "-", name).lower()
