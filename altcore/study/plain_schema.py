"""What plain data must hold, as plain data, and a check that names the key that is wrong.

A schema is a mapping of keys (``?`` ends one that may be missing), a list of the one schema of all
its items, `Each`, `Maybe`, `OneOf`, or a function that returns what is wrong with a value, if
anything is. Mappings may hold more than it says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from altcore.builtin_types import NONFINITE, misfit
from altcore.errors import BadInput, shown

LARGEST = 1e100
"""No number is as large."""
LONGEST = 40
"""Letters of a name in an error."""


@frozen
class Each:
    """A mapping of any names."""

    of: Any
    """The schema of all values."""


@frozen
class Maybe:
    """Null, or a value of a schema."""

    of: Any


@frozen
class OneOf:
    """One of some words."""

    words: Sequence[str]


def number(value: Any) -> str:
    """Return why a value is not a finite number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return "" if is_number and -LARGEST < value < LARGEST else "is not a number"


def any_number(value: Any) -> str:
    """Return why a value is no number; null and the words nan and inf are."""
    is_other = value is None or (isinstance(value, str) and value in NONFINITE)
    return "" if is_other else number(value)


def text(value: Any) -> str:
    """Return why a value is not text, or cannot be written."""
    return misfit(value, str) if isinstance(value, str) else "is not text"


def flag(value: Any) -> str:
    """Return why a value is not true or false."""
    return "" if isinstance(value, bool) else "is not true or false"


def anything(_: Any) -> str:
    """Return nothing: it is not read."""
    return ""


def check(value: Any, schema: Any, key: str = "") -> None:
    """Raise `BadInput`, with the key, if a value is not as a schema says."""
    match schema:
        case Maybe(of):
            if value is not None:
                check(value, of, key)
        case OneOf(words):
            _refuse_if(value not in words, f"{shown(value)} is not {' or '.join(words)}", key)
        case Each(of):
            _refuse_if(not isinstance(value, Mapping), f"{shown(value)} is not a mapping", key)
            for name, part in value.items():
                inner = _join(key, name)
                _refuse_if(bool(text(name)), f"the name {text(name)}", inner)
                check(part, of, inner)
        case Mapping():
            _refuse_if(not isinstance(value, Mapping), f"{shown(value)} is not a mapping", key)
            for told, of in schema.items():
                name = told.removesuffix("?")
                if name in value:
                    check(value[name], of, _join(key, name))
                else:
                    _refuse_if(name == told, "it is missing", _join(key, name))
        case [of]:
            _refuse_if(not isinstance(value, list), f"{shown(value)} is not a list", key)
            for place, part in enumerate(value):
                check(part, of, f"{key}[{place}]")
        case _:
            wrong = schema(value)
            _refuse_if(bool(wrong), f"{shown(value)} {wrong}", key)


def _refuse_if(is_wrong: bool, problem: str, key: str) -> None:
    if is_wrong:
        raise BadInput(problem, key=key)


def _join(key: str, name: str) -> str:
    short = name if len(name) <= LONGEST else f"{name[:LONGEST]}..."
    return f"{key}.{short}" if key else short
