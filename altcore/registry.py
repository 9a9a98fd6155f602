"""What is installed: entry points by kind, read from metadata without importing any plugin.

Listing makes one pass over each distribution's ``entry_points.txt`` and the head of its
``METADATA``. Loading is by name, on use, and every failure names the distribution and version.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

from altcore.errors import BadInput, nearest, with_article

if TYPE_CHECKING:
    from altcore.blocks import AnyFormat
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
        raise BadInput(f"{name!r} is claimed by {claims}: uninstall one of them")
    what = kinds[0] if len(kinds) == 1 else "plugin"
    other = kind_of(name)
    if other and other not in kinds:
        flag = "plugin" if other in HOOK_KINDS else other
        raise BadInput(
            f"{name!r} is {with_article(other)}, not {with_article(what)}: "
            f"train takes it by --{flag} {name}"
        )
    known = [e.name for e in entries() if e.kind in kinds and not e.is_family]
    raise BadInput(f"unknown {what} {name!r}{nearest(name, known)}: {_installed(known, kinds)}")


def kind_of(name: str) -> str | None:
    """Return the kind of what is called ``name``, if there is anything."""
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


def get_format(name: str | AnyFormat) -> AnyFormat:
    """Return the format called ``name``: an exact entry, or the one family that answers.

    It is a `Format`, or a `BlockFormat` where blocks of numbers share a scale. Raises `BadInput`
    for a name that nobody or more than one answers to, and for an entry that is not a format.
    """
    if _is_format(name):
        return name
    if not isinstance(name, str):
        raise BadInput(f"a format is given by its name, not by {name!r}")
    return _format_named(name)


def get_scalar_format(name: str | AnyFormat) -> Format:
    """Return the format called ``name`` for those who need one of single numbers.

    Raises `BadInput` as `get_format` does, and for a block format.
    """
    from altcore.formats import Format

    found = get_format(name)
    if not isinstance(found, Format):
        raise BadInput(
            f"format {found.name}: its numbers share scales in blocks, and here a format of "
            "single numbers is needed"
        )
    return found


def _is_format(thing: Any) -> TypeGuard[AnyFormat]:
    from altcore.blocks import BlockFormat
    from altcore.formats import Format

    return isinstance(thing, Format | BlockFormat)


@cache
def _format_named(name: str) -> AnyFormat:
    if any(e.kind == "format" and e.name == name and not e.is_family for e in entries()):
        entry = find(name, ("format",))
        found = entry.load()
        if callable(found) and not _is_format(found):
            found = _ask_family(entry, name)
        if not _is_format(found):
            raise BadInput(
                f"format {name} ({entry.origin}) is {type(found).__name__} {found!r:.60}: "
                "an entry point of this kind names a Format, a BlockFormat, or a function that "
                "returns one"
            )
        return _called(found, name, entry)
    family = family_of(name)
    if family is None:
        if "*" in name:
            raise BadInput(
                f"{name!r} is a family of formats: give one of its names, as E4M3 for E*M*"
            )
        find(name, ("format",))
        raise AssertionError("find raises for unknown names")
    return _called(_ask_family(family, name), name, family)


def _called(found: Any, name: str, entry: Entry) -> AnyFormat:
    # A run's config.yaml holds the format's own name, and must find it again.
    if found.name != name:
        raise BadInput(
            f"format {name} ({entry.origin}) calls itself {found.name!r}: the name of the "
            "format and that of its entry point must be the same"
        )
    checked: AnyFormat = found
    return checked


def family_of(name: str) -> Entry | None:
    """Return the family that makes the format called ``name``, or None.

    Raises `BadInput` where two do, and where one says why there is no such format.
    """
    from fnmatch import fnmatchcase

    asked = [e for e in entries() if e.is_family and fnmatchcase(name, e.name)]
    answers = [e for e in asked if _ask_family(e, name) is not None]
    if len(answers) > 1:
        claims = " and ".join(f"{e.name} of {e.origin}" for e in answers)
        raise BadInput(f"format {name!r} is answered by two families, {claims}: uninstall one")
    return answers[0] if answers else None


def _ask_family(entry: Entry, name: str) -> Any:
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
        told = "did you mean" in str(error)
        hint = "" if told else nearest(name, known)
        raise BadInput(f"{error}{hint}") from error
    # A third party's function may raise anything; the message names it.
    except Exception as error:
        raise BadInput(
            f"format family {entry.name} ({entry.origin}) failed on {name!r}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if found is not None and not _is_format(found):
        raise BadInput(
            f"format family {entry.name} ({entry.origin}) gave {type(found).__name__} "
            f"for {name!r}, not a Format, a BlockFormat or None"
        )
    return found
