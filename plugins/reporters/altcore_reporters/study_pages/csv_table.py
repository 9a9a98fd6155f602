"""A document's numbers as CSV, all in one file: what spreadsheets and pandas read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import repeat

from altcore.plugin import csv_text
from altcore_reporters.study_pages.document import Cell, Curves, Document, Interval, Number, Table

TABLE = "table"
"""The column that says to which table a row belongs."""
CURVE = ("arm", "× lr", "loss")
"""The columns of a run that chose a learning rate."""
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""How texts begin that a spreadsheet computes."""
ENDS = " [95 %]"
"""Ends the head of a column of intervals."""


def as_csv(document: Document) -> str:
    """Return every row of every table; what a table does not have is empty in its rows.

    An interval has three columns: its mean under the head itself, and its ends. The losses over
    learning rates have a row for each run. All columns of a kind of page are always there; every
    row begins with the facts of the study.
    """
    head = [*document.facts, TABLE]
    rows: list[Mapping[str, object]] = []
    for part in document.parts:
        if isinstance(part, Table) and part.is_data:
            head += [name for word in part.head for name in _names(word)]
            rows += _rows(part)
        if isinstance(part, Curves):
            head += CURVE
            rows += _runs(part)
    head += [key for row in rows for key in row]
    columns = list(dict.fromkeys(head))
    cells = [{**document.facts, **row} for row in rows]
    return csv_text([columns, *([harmless(own.get(key)) for key in columns] for own in cells)])


def harmless(value: object) -> object:
    """Return a value; a text that a spreadsheet would compute has an apostrophe before it.

    >>> harmless("=1+1"), harmless("E4M3/pure"), harmless(-1.5)
    ("'=1+1", 'E4M3/pure', -1.5)
    """
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def _names(word: str) -> list[str]:
    """Return the columns that a column of a table has here."""
    name = word.removesuffix(ENDS)
    return [name, f"{name} low", f"{name} high"] if name != word else [name]


def _rows(table: Table) -> Iterator[Mapping[str, object]]:
    for row, more in zip(table.rows, table.more or repeat({}), strict=False):
        cells: dict[str, object] = {}
        for word, cell in zip(table.head, row, strict=True):
            cells |= zip(_names(word), _values(cell), strict=False)
        yield {TABLE: table.key, **cells, **more}


def _values(cell: Cell) -> list[object]:
    """Return what a cell has in its columns; None, which is written as nothing, for NaN."""
    match cell:
        case Interval(mean=mean, low=low, high=high):
            return [_number(x) for x in (mean, low, high)]
        case Number():
            return [_number(cell.value)]
    return [cell.replace("`", "")]


def _number(given: float) -> float | None:
    return None if math.isnan(given) else given


def _runs(curves: Curves) -> Iterator[Mapping[str, object]]:
    for curve in curves.curves:
        for rate, losses in curve.points:
            for loss in losses:
                values = curves.key, curve.arm, rate, _number(loss)
                yield dict(zip((TABLE, *CURVE), values, strict=True))
