"""Formats that are installed: an exact entry point, or the one family that answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, TypeGuard

from altcore.errors import BadInput, check_copy, shown
from altcore.formats.base import Format
from altcore.formats.blocks import AnyFormat, BlockFormat
from altcore.registry import Entry, ask_family, entries, family_of, find


def is_format(thing: Any) -> TypeGuard[AnyFormat]:
    """Return whether ``thing`` is a format, of single numbers or of blocks."""
    return isinstance(thing, Format | BlockFormat)


@cache
def format_named(name: str) -> AnyFormat:
    """Return the installed format called ``name``.

    Raises `BadInput` if nobody or more than one answers to the name, and for an entry point that
    is not a format.
    """
    if any(e.kind == "format" and e.name == name and not e.is_family for e in entries()):
        entry = find(name, ("format",))
        found = entry.load()
        if callable(found) and not isinstance(found, type) and not is_format(found):
            found = ask_family(entry, name)
        if not is_format(found):
            check_copy(found, f"format {name} ({entry.origin})", Format, BlockFormat)
            raise BadInput(
                f"format {name} ({entry.origin}) is {_described(found)}, not a Format: "
                "an entry point of this kind names a Format, a BlockFormat, or a function that "
                "returns one"
            )
        return _called(found, name, entry)
    family = _family_of(name)
    return _called(_made(family, name), name, family)


def _described(thing: Any) -> str:
    is_class = isinstance(thing, type)
    return f"the class {thing.__name__}" if is_class else f"{type(thing).__name__} {shown(thing)}"


_RECORDED: ContextVar[Mapping[str, str] | None] = ContextVar("recorded_origins", default=None)


@contextmanager
def origins_recorded(origins: Mapping[str, str]) -> Iterator[None]:
    """Let the error of a format that is not installed name the distribution that a record does."""
    token = _RECORDED.set(origins)
    try:
        yield
    finally:
        _RECORDED.reset(token)


def recorded_origin(name: str) -> str | None:
    """Return the distribution and version that a record names for a format, if one is read."""
    return (_RECORDED.get() or {}).get(name)


def _family_of(name: str) -> Entry:
    """Return the family that answers to a name; `BadInput` if none does."""
    try:
        if family := family_of(name):
            return family
        if "*" in name:
            raise BadInput(
                f"{name!r} is a family of formats: give one of its names, as E4M3 for E*M*"
            )
        find(name, ("format",))
    except BadInput as error:
        if origin := recorded_origin(name):
            error.meant, error.hint = "", f"{name} came from {origin}: install it"
        raise
    raise AssertionError("find raises for unknown names")


def origin_of(name: str) -> str:
    """Return the distribution, and its version, that answers to a format's name."""
    exact = [e for e in entries() if e.kind == "format" and e.name == name]
    entry = exact[0] if exact else family_of(name)
    return "nobody" if entry is None else entry.origin


def _called(found: Any, name: str, entry: Entry) -> AnyFormat:
    # A run's config.yaml holds the format's own name, and must find it again.
    if found.name != name:
        raise BadInput(
            f"format {name} ({entry.origin}) calls itself {found.name!r}: the name of the "
            "format and that of its entry point must be the same"
        )
    checked: AnyFormat = found
    return checked


def _made(family: Entry, name: str) -> Any:
    found = ask_family(family, name)
    if not is_format(found):
        check_copy(found, f"format {name} ({family.origin})", Format, BlockFormat)
        raise BadInput(
            f"format family {family.name} ({family.origin}) gave {type(found).__name__} "
            f"for {name!r}, not a Format, a BlockFormat or None"
        )
    return found
