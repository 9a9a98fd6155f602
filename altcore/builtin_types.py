"""Values as Python's built-in types, as strict JSON, and as text; which of them are too large.

Imports no numpy.
"""

from __future__ import annotations

import csv
import math
import os
import sys
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

NONFINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
"""JSON has no such numbers: they are written as these words."""
PLAIN = (str, int, float, bool, type(None))
"""Most values; each line of a record has a dozen. torch 2.8 compiles no set of types."""
DEEPEST = 100
"""Levels of a configuration or of a state in a checkpoint."""


def as_builtin(value: Any) -> Any:
    """Return numpy's numbers as Python's, and paths as text; everything else as it is.

    Lists, tuples and dictionaries are converted at every depth.
    """
    if type(value) in PLAIN:
        return value
    numpy = sys.modules.get("numpy")  # if its numbers exist, somebody imported it
    if numpy is not None and isinstance(value, numpy.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if type(value) in (list, tuple):
        return type(value)(as_builtin(v) for v in value)
    if type(value) is dict:
        return {as_builtin(k): as_builtin(v) for k, v in value.items()}
    return value


def copied(value: Any) -> Any:
    """Return mappings, lists and tuples as new ones, at every depth; all else is the same object.

    >>> line = {"loss": 2.5, "norms": [1, 2]}
    >>> copied(line) == line, copied(line)["norms"] is line["norms"]
    (True, False)
    """
    if isinstance(value, Mapping):
        return {k: copied(v) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(copied, value))
    return value


def nested_too_deeply(value: Any) -> str:
    """Return what is wrong with a value of more than `DEEPEST` levels, or an empty text.

    Levels are lists, tuples and mappings within one another; one that holds itself has no end.

    >>> nested_too_deeply({"a": [1, {"b": 2}]})
    ''
    >>> deep = {}
    >>> deep[1] = [deep]
    >>> nested_too_deeply(deep)
    'is nested more than 100 levels deep, or holds itself: [1][0][1][0]...'
    """
    looked: dict[int, int] = {}
    left: list[tuple[Any, tuple[Any, ...]]] = [(value, ())]
    while left:
        part, way = left.pop()
        if len(way) > DEEPEST:
            keys = "".join(f"[{key!r:.20}]" for key in way[:4])
            return f"is nested more than {DEEPEST} levels deep, or holds itself: {keys}..."
        if not isinstance(part, Mapping | list | tuple) or looked.get(id(part), -1) >= len(way):
            continue
        looked[id(part)] = len(way)
        inner = part.items() if isinstance(part, Mapping) else enumerate(part)
        left += [(held, (*way, key)) for key, held in inner]
    return ""


def to_json(value: Any) -> Any:
    """Return ``value`` with non-finite numbers as words, as strict JSON needs.

    >>> to_json({"loss": math.inf, "steps": (1, 2.5)})
    {'loss': 'inf', 'steps': [1, 2.5]}
    """
    if type(value) not in (dict, list, tuple):  # whose values are converted one by one
        value = as_builtin(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    return value


def digits(value: float) -> str:
    """Return a number as text that gives it back, in the shortest form.

    >>> digits(57344.0), digits(2**-14), digits(0.1), digits(6e-08)
    ('57344', '6.103515625e-05', '0.1', '6e-08')
    """
    short = f"{value:g}"
    return short if float(short) == value else repr(value).removesuffix(".0")


def rounded(value: float, places: int = 4) -> str:
    """Return a number with some decimals, but never one as 0 that is not.

    >>> rounded(0.12345), rounded(0.0), rounded(-0.0000123)
    ('0.1235', '0.0000', '-1.2e-05')
    """
    is_small = 0 < abs(value) < 0.5 * 10**-places
    return f"{value:.2g}" if is_small else f"{value:.{places}f}"


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    r"""Return rows as CSV; a cell with either end of a line in it is quoted.

    >>> csv_text([["a", "b"], [1.5, "50 %\rdone"]])
    'a,b\n1.5,"50 %\rdone"\n'
    """
    out = _Lines()
    csv.writer(out, lineterminator=out.END).writerows(rows)
    return "".join(out)


class _Lines(list[str]):
    """Lines that `csv` writes. Python 3.11 quotes no end of a line but what ends its own."""

    END = "\r\n"

    def write(self, line: str) -> None:
        """Keep a line."""
        self.append(line.removesuffix(self.END) + "\n")


def duration(seconds: float) -> str:
    """Return a duration in seconds, minutes, hours or days.

    >>> duration(59), duration(600), duration(7200), duration(3e5)
    ('59 s', '10 min', '2.0 h', '3.5 d')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} d"


def misfit(value: Any, kind: type) -> str:
    """Return why nobody below Python can hold a number or text, or an empty text.

    Python's whole numbers have any length, those of torch and C 64 bits; texts become paths.

    >>> misfit(10**400, float), misfit(2**63, float)
    ('is beyond float64', '')
    """
    if kind is int and not -(2**63) <= value < 2**63:
        return f"is beyond 64 bits: whole numbers are >= {-(2**63)} and < {2**63}"
    if kind is float and isinstance(value, int) and abs(value) >= 2**1024:
        return "is beyond float64"
    if kind is str and not _is_path(value):
        return "is not a name or path: their letters are those of UTF-8, without NUL"
    return ""


def _is_path(text: str) -> bool:
    try:
        return b"\0" not in text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False


def printable(text: str) -> str:
    r"""Return a text with its control characters as escapes; ends of lines and tabs stay.

    A terminal obeys some of them: they move the cursor, set its title, or turn text round.

    >>> printable("a\x1b[31mb\u202e\n")
    'a\\x1b[31mb\\u202e\n'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c
        if c.isprintable() or c in "\n\t" or unicodedata.category(c) == "Zs"
        else c.encode("unicode_escape").decode()
        for c in text
    )


def one_line(text: str) -> str:
    r"""Return a text as a single line, which no other can be taken for, without control characters.

    >>> one_line("lost\r\naltcore: all is well\x1b[2K")
    'lost altcore: all is well\\x1b[2K'
    """
    return printable(" ".join(text.splitlines()))
