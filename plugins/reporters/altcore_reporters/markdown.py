"""Markdown of reports: tables, and numbers in words.

What was not measured is called not available, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from altcore.plugin import printable

MISSING = "not available"
AMAX = "n/a (amax)"
"""The overflow rate where every scale follows its tensor's own largest magnitude."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a Markdown table's lines."""
    return [row(head), row(["---"] * len(head)), *map(row, rows)]


def row(cells: Sequence[str]) -> str:
    """Return a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def text(value: Any) -> str:
    """Return anything as Markdown text that stays in its cell: no HTML, no link, no image."""
    if value is None:
        return MISSING
    plain = printable(" ".join(str(value).split()))
    for mark, harmless in (("<", "&lt;"), ("|", "\\|"), ("[", "\\[")):
        plain = plain.replace(mark, harmless)
    return plain


def caution(problems: Sequence[str]) -> list[str]:
    """Return the paragraphs that say what is wrong with the runs of a report; none if nothing is.

    >>> caution([])
    []
    """
    if not problems:
        return []
    listed = "\n".join(f"- {text(problem)}" for problem in problems)
    return ["**Caution**, of the records behind this report:", listed]


def number(value: Any) -> str:
    """Return a number with six significant digits; nested non-finite ones arrive as words."""
    if isinstance(value, int | float):
        return f"{value:.6g}"
    return text(value)


def rate(value: Any) -> str:
    """Return a share as a percentage; only 0 and 1 themselves look like them."""
    if not isinstance(value, int | float):
        return text(value)
    if 0 < value < 5e-5:
        return "under 0.01%"
    return "over 99.99%" if 0.99995 <= value < 1 else f"{value:.2%}"


def overflow(line: Mapping[str, Any]) -> str:
    """Return a line's overflow rate; if there are quantizers and no rate, none can overflow."""
    value = line.get("overflow_rate")
    if value is None and line.get("flushed_rate") is not None:
        return AMAX
    return rate(value)


def some(names: Sequence[str], limit: int = 4) -> str:
    """Return the first few names."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def is_finite(value: Any) -> bool:
    """Whether a value of the record is a finite number."""
    # Inside an event's tables a number that is not finite is a word.
    return isinstance(value, int | float) and math.isfinite(value)
