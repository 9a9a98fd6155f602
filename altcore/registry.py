"""What is installed: entry points by kind, read from metadata without importing any plugin.

Listing makes one pass over each distribution's ``entry_points.txt`` and the head of its
``METADATA``. Loading is by name, on use, and every failure names the distribution and version.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

from altcore.errors import BadInput, nearest, with_article

KINDS = ("format", "intervention", "diagnostic", "reporter", "optimizer", "workload")
HOOK_KINDS = ("intervention", "diagnostic", "reporter")
"""The kinds whose plugins have hooks and are named with ``--plugin``, in dispatch order."""


def group_of(kind: str) -> str:
    """Return the entry-point group of a kind.

    >>> group_of("format")
    'altcore.formats'
    """
    return f"altcore.{kind}s"


class Entry(NamedTuple):
    """One entry point of one distribution."""

    name: str
    kind: str
    distribution: str
    version: str
    summary: str
    value: str
    """Where it lies: ``module:attribute``."""

    @property
    def is_family(self) -> bool:
        """Whether it answers for all names of a pattern such as ``E*M*``."""
        return self.kind == "format" and "*" in self.name

    @property
    def origin(self) -> str:
        """The distribution and version, as messages name them."""
        return f"{self.distribution} {self.version}"

    def load(self) -> Any:
        """Import and return the object; `BadInput` naming plugin, distribution and error."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_+-]*", self.name.replace("*", "")):
            raise BadInput(
                f"{self.kind} {self.name!r} ({self.origin}): a plugin's name has letters, "
                "digits, dash, plus and underscore only"
            )
        module, _, attribute = self.value.partition(":")
        try:
            found: Any = import_module(module.strip())
            for part in filter(None, attribute.split("[")[0].strip().split(".")):
                found = getattr(found, part)
        # A plugin's import may raise anything, or try to leave; it is reported under its name.
        except (Exception, SystemExit) as error:
            raise BadInput(
                f"{self.kind} {self.name} ({self.origin}) cannot be loaded: "
                f"{type(error).__name__}: {error}"
            ) from error
        return found


@cache
def entries() -> tuple[Entry, ...]:
    """Return every altcore entry point installed, by kind and name.

    The first distribution of a name on the path hides later ones, as it does for imports. Two
    different distributions that claim one name are both listed.
    """
    from importlib.metadata import distributions

    found: set[Entry] = set()
    seen: set[str] = set()
    for distribution in distributions():
        text = distribution.read_text("entry_points.txt")
        if not text or "altcore." not in text:
            continue
        # An editable install by setuptools has its metadata under the older name.
        metadata = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO")
        name, version, summary = _head(metadata or "")
        key = name.lower().replace("_", "-").replace(".", "-")
        if key in seen:
            continue
        seen.add(key)
        for kind, entry_name, value in _parse(text):
            found.add(Entry(entry_name, kind, name, version, summary, value))
    return tuple(sorted(found, key=lambda e: (KINDS.index(e.kind), e.name, e.distribution)))


def _parse(text: str) -> Iterator[tuple[str, str, str]]:
    kinds = {group_of(kind): kind for kind in KINDS}
    kind = None
    for raw in text.splitlines():
        line = raw.strip()
        if line.startswith("[") and line.endswith("]"):
            kind = kinds.get(line[1:-1].strip())
        elif kind and "=" in line and not line.startswith(("#", ";")):
            name, _, value = line.partition("=")
            yield kind, name.strip(), value.strip()


def _head(metadata: str) -> tuple[str, str, str]:
    fields = {"Name": "?", "Version": "?", "Summary": ""}
    for line in metadata.splitlines():
        if not line.strip():
            break
        key, _, value = line.partition(":")
        if key in fields:
            fields[key] = value.strip()
    return fields["Name"], fields["Version"], fields["Summary"]


def find(name: str, kinds: Sequence[str]) -> Entry:
    """Return the one entry called ``name`` among ``kinds``.

    Raises `BadInput` for an unknown name (the nearest is offered), and for one that two
    distributions or two kinds claim (both are named).
    """
    hits = [e for e in entries() if e.kind in kinds and e.name == name]
    if len(hits) == 1:
        return hits[0]
    if hits:
        claims = " and ".join(f"{e.origin} ({e.kind})" for e in hits)
        raise BadInput(f"{name!r} is claimed by {claims}", hint="uninstall one of them")
    what = kinds[0] if len(kinds) == 1 else "plugin"
    other = kind_of(name)
    if other and other not in kinds:
        flag = "plugin" if other in HOOK_KINDS else other
        raise BadInput(
            f"{name!r} is {with_article(other)}, not {with_article(what)}",
            hint=f"train takes it by --{flag} {name}",
        )
    known = [e.name for e in entries() if e.kind in kinds and not e.is_family]
    raise BadInput(
        f"unknown {what} {name!r}", meant=nearest(name, known), hint=_installed(known, kinds)
    )


def kind_of(name: str) -> str | None:
    """Return the kind of the plugin or format called ``name``, None if there is none."""
    for entry in entries():
        if entry.name == name and not entry.is_family:
            return entry.kind
    try:
        return "format" if family_of(name) else None
    except BadInput:
        # Something like a format's name, and none.
        return None


def _installed(known: Sequence[str], kinds: Sequence[str]) -> str:
    if known:
        return f"installed are {', '.join(sorted(set(known)))}"
    packages = " ".join(f"altcore-{kind}s" for kind in kinds)
    return f"none is installed; the first-party ones come with: pip install {packages}"


def family_of(name: str) -> Entry | None:
    """Return the family that makes the format called ``name``, or None.

    Raises `BadInput` if two do, and if one says why there is no such format.
    """
    from fnmatch import fnmatchcase

    asked = [e for e in entries() if e.is_family and fnmatchcase(name, e.name)]
    answers = [e for e in asked if ask_family(e, name) is not None]
    if len(answers) > 1:
        claims = " and ".join(f"{e.name} of {e.origin}" for e in answers)
        raise BadInput(f"format {name!r} is answered by two families, {claims}: uninstall one")
    return answers[0] if answers else None


def ask_family(entry: Entry, name: str) -> Any:
    """Return the format that the family makes of ``name``, None if the name is not its own.

    Raises `BadInput` if the family says why there is no such format, and if it fails.
    """
    family = entry.load()
    if not callable(family):
        raise BadInput(
            f"format family {entry.name} ({entry.origin}) is {type(family).__name__} "
            f"{family!r:.60}: an entry point with * names a function from a name to a Format"
        )
    try:
        found = family(name)
    except BadInput as error:
        known = [e.name for e in entries() if e.kind == "format" and not e.is_family]
        error.meant = error.meant or nearest(name, known)
        raise
    # A third party's function may raise anything; the message names it.
    except Exception as error:
        raise BadInput(
            f"format family {entry.name} ({entry.origin}) failed on {name!r}: "
            f"{type(error).__name__}: {error}"
        ) from error
    return found
