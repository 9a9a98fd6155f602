"""What is installed: entry points by kind, read from metadata without importing any plugin.

Listing makes one pass over each distribution's ``entry_points.txt``, and its ``METADATA`` if that
names a plugin. Loading is by name, on use, and every failure names the distribution and version.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from altcore.errors import BadInput, described, nearest, with_article
from altcore.plugin_help import read_help
from altcore.signals import is_from_signal

if TYPE_CHECKING:
    from importlib.metadata import Distribution

KINDS = ("format", "intervention", "diagnostic", "reporter", "optimizer", "workload", "executor")
HOOK_KINDS = ("intervention", "diagnostic", "reporter")
"""The kinds whose plugins have hooks and are named with ``--plugin``, in dispatch order."""
RESERVED = ("none", "FORMAT")
"""Names with a meaning of their own: no format, and the run's format in a recipe."""
NAMED_ONCE = ("workload", "optimizer")
"""Kinds of which a run has one, with settings under its name."""
SHOWN = 5
"""Names that the message of an unknown one offers, and distributions named that are left out."""
ENTRY_POINTS = "entry_points.txt"


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
    help: str = ""
    """Its line in the distribution's README."""

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
        if self.name in RESERVED:
            raise BadInput(f"{self.kind} {self.name} ({self.origin}): the name is reserved")
        module, _, attribute = self.value.partition(":")
        try:
            found: Any = import_module(module.strip())
            for part in filter(None, attribute.split("[")[0].strip().split(".")):
                found = getattr(found, part)
        # A plugin's import may raise anything, or try to leave; it is reported under its name.
        except BaseException as error:
            if is_from_signal(error):
                raise
            raise BadInput(
                f"{self.kind} {self.name} ({self.origin}) cannot be loaded: {described(error)}"
            ) from error
        return found


class Problem(NamedTuple):
    """What is wrong with the metadata of a distribution."""

    path: str
    """The file at fault."""
    text: str
    is_left_out: bool = True
    """Whether all of the distribution's entry points are left out."""

    def __str__(self) -> str:
        return f"{self.path}: {self.text}{': left out' if self.is_left_out else ''}"


class Installed(NamedTuple):
    """What one pass over all distributions found."""

    entries: tuple[Entry, ...]
    problems: tuple[Problem, ...]


def entries() -> tuple[Entry, ...]:
    """Return every altcore entry point installed, by kind and name.

    The first distribution of a name on the path hides later ones, as it does for imports. Two
    different distributions that claim one name are both listed.
    """
    return installed().entries


@cache
def installed() -> Installed:
    """Read the metadata of all distributions; one that cannot be read spoils no other."""
    from importlib.metadata import distributions

    found: set[Entry] = set()
    problems: list[Problem] = []
    seen: set[str] = set()
    for distribution in distributions():
        folder = Path(str(getattr(distribution, "_path", distribution)))
        try:
            points, odd = _parse(_read(distribution, ENTRY_POINTS))
            problems += [
                Problem(str(folder / ENTRY_POINTS), text, is_left_out=False) for text in odd
            ]
            if not points:
                continue
            # An editable install by setuptools has its metadata under the older name.
            metadata = _read(distribution, "METADATA") or _read(distribution, "PKG-INFO")
        except _Unreadable as error:
            problems.append(Problem(str(folder / error.file), error.text))
            continue
        name, version, summary = _head(metadata, folder)
        key = name.lower().replace("_", "-").replace(".", "-")
        if key in seen:
            continue
        seen.add(key)
        help_of = read_help(metadata)
        found |= {
            Entry(point, kind, name, version, summary, at, help_of.get(point, ""))
            for kind, point, at in points
        }
    ordered = sorted(found, key=lambda e: (KINDS.index(e.kind), *e))
    return Installed(tuple(ordered), tuple(sorted(set(problems))))


_broken_families: set[str] = set()
"""The errors of families that were asked for a format and are broken."""
_told: set[str] = set()
"""The lines of what is left out that this process has told."""


def left_out(*, again: bool) -> list[str]:
    """Return a line for each distribution that is left out, to be told.

    With ``again`` also for what only looks odd. Otherwise only what was not told in this process,
    families that broke when they were asked included, and a few of many: they may be about
    something else.
    """
    lines = [str(problem) for problem in installed().problems if problem.is_left_out or again]
    if again:
        return lines
    lines += [f"{text}: left out" for text in sorted(_broken_families)]
    news = [line for line in lines if line not in _told]
    _told.update(news)
    rest = len(news) - SHOWN
    more = [f"and {rest} more; altcore plugins check names them all"] if rest > 0 else []
    return news[:SHOWN] + more


def spare_torch() -> None:
    """Let torch be imported beside a broken distribution.

    As it is imported, it looks through all entry points for devices of third parties, and fails
    if a single one cannot be read.
    """
    broken = [p for p in installed().problems if p.is_left_out and p.path.endswith(ENTRY_POINTS)]
    if broken and "torch" not in sys.modules:
        os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")


class _Unreadable(Exception):
    """A file of metadata cannot be read."""

    def __init__(self, file: str, text: str) -> None:
        super().__init__(text)
        self.file, self.text = file, text


def _read(distribution: Distribution, file: str) -> str:
    """Return a file of metadata, empty if there is none."""
    try:
        return distribution.read_text(file) or ""
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise _Unreadable(file, f"line {line} is not UTF-8") from None
    except OSError as error:
        raise _Unreadable(file, f"it cannot be read: {error.strerror or error}") from None


def _parse(text: str) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Return kind, name and value of each entry point, and what looks odd, in words.

    A line that `importlib.metadata` could not read is an error in any group. It passes over lines
    before the first group.
    """
    kinds = {group_of(kind): kind for kind in KINDS}
    points, odd, group = [], [], None
    for number, raw in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        line = raw.strip()
        where = f"line {number}, {line!r:.60},"
        if not line or line.startswith("#"):
            continue
        if line.startswith("[") and line.endswith("]"):
            group = line[1:-1].strip()
            if group not in kinds and (meant := _meant(group)) is not None:
                odd.append(f"there is no group {group}{f' (did you mean {meant}?)' * bool(meant)}")
            continue
        name, equals, value = line.partition("=")
        if line.startswith("[") and not equals:
            raise _Unreadable(ENTRY_POINTS, f"{where} has no ] at its end")
        if group is None:
            odd.append(f"{where} belongs to no group: no [{group_of(KINDS[0])}] comes before")
        elif not equals:
            raise _Unreadable(ENTRY_POINTS, f"{where} is not name = value")
        elif group in kinds:
            points.append((kinds[group], name.strip(), value.strip()))
    return points, odd


def _meant(group: str) -> str | None:
    """Return altcore's group that an unknown one looks like; "" if like none in particular.

    None if it is about something else.
    """
    known = {re.sub("[^a-z]", "", group_of(kind)): group_of(kind) for kind in KINDS}
    near = difflib.get_close_matches(re.sub("[^a-z]", "", group.lower()), known, cutoff=0.9)
    if near:
        return known[near[0]]
    is_altcores = re.match(r"altcore\b", group, re.IGNORECASE)
    return nearest(group, known.values()) if is_altcores else None


def _head(metadata: str, folder: Path) -> tuple[str, str, str]:
    """Return name, version and summary; of a distribution that has none, those of its folder."""
    name, _, version = folder.stem.partition("-")
    fields = {"Name": name, "Version": version or "?", "Summary": ""}
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
        _refuse_shared_settings(hits[0])
        return hits[0]
    if hits:
        if len({(e.origin, e.kind) for e in hits}) == 1:
            twice = " and ".join(e.value for e in hits)
            problem = f"{name!r} is named {len(hits)} times by {hits[0].origin}, as {twice}"
            raise BadInput(problem, hint=f"its {ENTRY_POINTS} may name it once")
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
    known = sorted({e.name for e in entries() if e.kind in kinds and not e.is_family})
    raise BadInput(
        f"unknown {what} {name!r}", meant=nearest(name, known), hint=_some(name, known, kinds)
    )


def _refuse_shared_settings(entry: Entry) -> None:
    """Refuse a plugin named like a workload or optimizer: ``NAME.key`` would be both's."""
    before = {"workload": (), "optimizer": ("workload",), "format": ()}
    for other in entries():
        if other.name == entry.name and other.kind in before.get(entry.kind, NAMED_ONCE):
            raise BadInput(
                f"{entry.kind} {entry.name} ({entry.origin}) has the name of the {other.kind} "
                f"{other.name} ({other.origin}), and their settings cannot be told apart"
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


def _some(name: str, known: Sequence[str], kinds: Sequence[str]) -> str:
    """Say which names there are, or the nearest ones of many."""
    families = sorted({e.name for e in entries() if e.kind in kinds and e.is_family})
    of_families = f"; families are {', '.join(families)}" if families else ""
    if len(known) > SHOWN:
        as_written = {other.lower(): other for other in known}
        found = difflib.get_close_matches(name.lower(), as_written, n=SHOWN, cutoff=0.0)
        near = ", ".join(as_written[lower] for lower in found)
        said = f"the nearest of {len(known)} are {near}{of_families}"
        return f"{said}; altcore plugins list has all"
    if known:
        return f"installed are {', '.join(known)}{of_families}"
    packages = " ".join(f"altcore-{kind}s" for kind in kinds)
    folders = " ".join(f"./plugins/{kind}s" for kind in kinds)
    return f"none is installed; pip install {packages} (in a clone of altcore: {folders})"


def family_of(name: str) -> Entry | None:
    """Return the family that makes the format called ``name``, or None.

    Raises `BadInput` if two do. If none does, and one says why there is no such format or is
    broken, its own.
    """
    from fnmatch import fnmatchcase

    answers: list[Entry] = []
    errors: list[BadInput] = []
    for entry in entries():
        if entry.is_family and fnmatchcase(name, entry.name):
            try:
                answers += [entry] if ask_family(entry, name) is not None else []
            except BadInput as error:
                errors.append(error)
    if len(answers) > 1:
        claims = " and ".join(f"{e.name} of {e.origin}" for e in answers)
        raise BadInput(f"format {name!r} is answered by two families, {claims}: uninstall one")
    if errors and not answers:
        raise errors[0]
    return answers[0] if answers else None


def ask_family(entry: Entry, name: str) -> Any:
    """Return the format that the family makes of ``name``, None if the name is not its own.

    Raises `BadInput` if the family says why there is no such format, and if it fails.
    """
    try:
        family = load_family(entry)
    except BadInput as error:
        _broken_families.add(str(error))
        raise
    try:
        found = family(name)
    except BadInput as error:
        known = [e.name for e in entries() if e.kind == "format" and not e.is_family]
        error.meant = error.meant or nearest(name, known)
        raise
    # A third party's function may raise anything; the message names it.
    except BaseException as error:
        if is_from_signal(error):
            raise
        what = "format family" if entry.is_family else "the function of format"
        text = f"{what} {entry.name} ({entry.origin}) failed on {name!r}: {described(error)}"
        _broken_families.add(text)
        raise BadInput(text) from error
    return found


def load_family(entry: Entry) -> Callable[[str], Any]:
    """Return a family's function; `BadInput` if it has none."""
    family = entry.load()
    if not callable(family):
        raise BadInput(
            f"format family {entry.name} ({entry.origin}) is {type(family).__name__} "
            f"{family!r:.60}: an entry point with * names a function from a name to a Format"
        )
    made: Callable[[str], Any] = family
    return made
