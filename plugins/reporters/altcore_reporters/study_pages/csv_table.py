"""A document's numbers as CSV, all in one file: what spreadsheets and pandas read."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence

from altcore_reporters.study_pages.document import Cell, Curves, Document, Interval, Number, Table

TABLE = "table"
"""The column that says to which table a row belongs."""


def as_csv(document: Document) -> str:
    """Return every row of every table; a column that a table does not have is empty in its rows.

    An interval has three columns: its mean under the head itself, and its ends. The losses over
    learning rates have a row for each run.
    """
    rows = list(_rows(document))
    head = dict.fromkeys(key for row in rows for key in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, head, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _rows(document: Document) -> Iterator[Mapping[str, object]]:
    for part in document.parts:
        match part:
            case Table(is_data=True):
                for row in part.rows:
                    yield {TABLE: part.key, **dict(_values(part.head, row))}
            case Curves():
                for curve in part.curves:
                    for rate, losses in curve.points:
                        for loss in losses:
                            yield {TABLE: part.key, "arm": curve.arm, "× lr": rate, "loss": loss}


def _values(head: Sequence[str], row: Sequence[Cell]) -> Iterator[tuple[str, object]]:
    for word, cell in zip(head, row, strict=True):
        name = word.removesuffix(" [95 %]")
        match cell:
            case Interval(low=low, high=high):
                yield from ((name, cell.mean), (f"{name} low", low), (f"{name} high", high))
            case Number():
                yield name, cell.value
            case str():
                yield name, cell.replace("`", "")
