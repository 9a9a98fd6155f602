"""Small files of a sweep that hold a record: whatever is in one, the error names it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from altcore.errors import BadInput
from altcore.runs import read_json
from altcore.sweep.tables import with_tables, without_tables

T = TypeVar("T")
MOST = 1e15
"""No number of a record is as large: seconds, bytes and percentages."""


def record_text(plain: Any) -> str:
    """Return plain data as strict JSON, of which `read_record` gives every number back.

    >>> record_text({"grad_clip": float("inf")}).split()
    ['{', '"grad_clip":', '{', '"$number":', '"inf"', '}', '}']
    """
    return json.dumps(without_tables(plain, None), indent=1, allow_nan=False, default=str)


def read_record(path: Path, make: Callable[[Mapping[str, Any]], T]) -> T | None:
    """Return what ``make`` makes of the mapping that a file holds; None if there is no file.

    Raises `BadInput`, naming the file, if ``make`` has no use for it, or if it is no regular file
    that holds a mapping as JSON.
    """
    known = read_json(path)
    if not known and not path.exists():
        return None
    try:
        return make(with_tables(known, None))
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise BadInput(f"{path} is not what a sweep writes") from error


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number, with which sums can be made."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -MOST < value < MOST


def number(_: Any, attribute: Any, value: Any) -> None:
    """Raise `TypeError` unless a field is a number, as `is_number` has it."""
    if not is_number(value):
        raise TypeError(f"{attribute.name} is no number: {value!r}")
