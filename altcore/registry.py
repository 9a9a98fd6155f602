"""What is installed: entry points by kind, read from metadata without importing any plugin.

Listing makes one pass over each distribution's ``entry_points.txt`` and the head of its
``METADATA``. Loading is by name, on use, and every failure names the distribution and version.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from altcore.errors import BadInput, nearest

if TYPE_CHECKING:
    from altcore.formats import Format

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
        module, _, attribute = self.value.partition(":")
        try:
            found: Any = import_module(module.strip())
            for part in filter(None, attribute.split("[")[0].strip().split(".")):
                found = getattr(found, part)
        # A plugin's import may raise anything; each failure is reported under its name.
        except Exception as error:
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
        name, version, summary = _head(distribution.read_text("METADATA") or "")
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
        raise BadInput(f"{name!r} is claimed by {claims}: uninstall one of them")
    what = kinds[0] if len(kinds) == 1 else "plugin"
    known = [e.name for e in entries() if e.kind in kinds and not e.is_family]
    raise BadInput(f"unknown {what} {name!r}{nearest(name, known)}: {_installed(known, kinds)}")


def _installed(known: Sequence[str], kinds: Sequence[str]) -> str:
    if known:
        return f"installed are {', '.join(sorted(set(known)))}"
    packages = " ".join(f"altcore-{kind}s" for kind in kinds)
    return f"none is installed; the first-party ones come with: pip install {packages}"


def get_format(name: str | Format) -> Format:
    """Return the format called ``name``: an exact entry, or the one family that answers.

    Raises `BadInput` for a name that nobody or more than one answers to, and for an entry that
    is not a format.
    """
    from altcore.formats import Format

    if isinstance(name, Format):
        return name
    if not isinstance(name, str):
        raise BadInput(f"a format is given by its name, not by {name!r}")
    return _format_named(name)


@cache
def _format_named(name: str) -> Format:
    from altcore.formats import Format

    if any(e.kind == "format" and e.name == name and not e.is_family for e in entries()):
        entry = find(name, ("format",))
        found = entry.load()
        if callable(found) and not isinstance(found, Format):
            found = found(name)
        if not isinstance(found, Format):
            raise BadInput(
                f"format {name} ({entry.origin}) is {type(found).__name__} {found!r:.60}: "
                "an entry point of this kind names a Format, or a function that returns one"
            )
        return found
    answers = [(e, _ask_family(e, name)) for e in entries() if e.is_family and _fits(name, e.name)]
    answers = [(e, f) for e, f in answers if f is not None]
    if len(answers) == 1:
        return answers[0][1]
    if answers:
        claims = " and ".join(f"{e.name} of {e.origin}" for e, _ in answers)
        raise BadInput(f"format {name!r} is answered by two families, {claims}: uninstall one")
    find(name, ("format",))
    raise AssertionError("find raises for unknown names")


def _fits(name: str, pattern: str) -> bool:
    from fnmatch import fnmatchcase

    return fnmatchcase(name, pattern)


def _ask_family(entry: Entry, name: str) -> Any:
    from altcore.formats import Format

    family = entry.load()
    try:
        found = family(name)
    except BadInput:
        raise
    # A third party's function may raise anything; the message names it.
    except Exception as error:
        raise BadInput(
            f"format family {entry.name} ({entry.origin}) failed on {name!r}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if found is not None and not isinstance(found, Format):
        raise BadInput(
            f"format family {entry.name} ({entry.origin}) gave {type(found).__name__} "
            f"for {name!r}, not a Format or None"
        )
    return found
