"""Formats by name: an exact entry point, or the one family that answers."""

from __future__ import annotations

from functools import cache
from typing import Any, TypeGuard

from altcore.errors import BadInput
from altcore.formats.blocks import AnyFormat, BlockFormat
from altcore.formats.scalar import Format
from altcore.registry import Entry, ask_family, entries, family_of, find


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
    found = get_format(name)
    if not isinstance(found, Format):
        raise BadInput(
            f"format {found.name}: its numbers share scales in blocks, and here a format of "
            "single numbers is needed"
        )
    return found


def _is_format(thing: Any) -> TypeGuard[AnyFormat]:
    return isinstance(thing, Format | BlockFormat)


@cache
def _format_named(name: str) -> AnyFormat:
    if any(e.kind == "format" and e.name == name and not e.is_family for e in entries()):
        entry = find(name, ("format",))
        found = entry.load()
        if callable(found) and not _is_format(found):
            found = ask_family(entry, name)
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
    return _called(_made(family, name), name, family)


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
    if not _is_format(found):
        raise BadInput(
            f"format family {family.name} ({family.origin}) gave {type(found).__name__} "
            f"for {name!r}, not a Format, a BlockFormat or None"
        )
    return found
