"""The reporter ``csv``: the run as a table, for spreadsheets and pandas."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from attrs import field

from altcore.plugin import RunRecord, csv_text, replace_text
from altcore_reporters.tracking import TrackerReporter

TABLE = "metrics.csv"
MOST = 2**31 - 1
"""Characters of a cell that can be read again: a list may be long."""
Row = dict[str, Any]
"""The values of a step, by column."""


@attrs.define(eq=False)
class CsvTracker(TrackerReporter):
    """Writes reports/csv/metrics.csv: a row a step, a column a value.

    An evaluation stands in the row of its step. A cell is empty where a step has no such value; a
    list is JSON. The file is whole after each line.
    """

    path: Path = field(init=False, default=Path())
    columns: list[str] = field(init=False, factory=list)
    last_row: Row = field(init=False, factory=dict)
    """It may get more values."""
    settled: int = field(init=False, default=0)
    """Bytes of the file before the last row."""

    def start(self, record: RunRecord) -> None:
        """Begin the table anew."""
        self.path = self.folder(record) / TABLE
        self.address, self.columns = str(self.path), ["step"]
        self._write_all([])

    def log(self, step: int, values: Mapping[str, Any], when: float) -> None:
        """Write the row of a step, or its new values."""
        last = self.last_row.get("step", 0)
        new = [name for name in values if name not in self.columns]
        if new or step < last:
            self.columns += new
            self._insert(step, values)
            return
        if step > last:
            self.settled += len(self._text([self.last_row]))
            self.last_row = {"step": step}
        self.last_row.update(values)
        with self.path.open("r+b") as file:
            file.seek(self.settled)
            file.write(self._text([self.last_row]))
            file.truncate()

    def holds(self, record: RunRecord) -> bool:
        """Whether nobody removed the table."""
        return (self.folder(record) / TABLE).exists()

    def _insert(self, step: int, values: Mapping[str, Any]) -> None:
        """Write the table anew, which few rows ask for: with new columns, or of an early step."""
        before = csv.field_size_limit(MOST)
        try:
            with self.path.open(newline="") as file:
                found = [{**row, "step": int(row["step"])} for row in csv.DictReader(file)]
        finally:
            csv.field_size_limit(before)
        rows: dict[int, Row] = {row["step"]: row for row in found}
        rows.setdefault(step, {"step": step}).update(values)
        self._write_all([rows[step] for step in sorted(rows)])

    def _write_all(self, rows: Sequence[Row]) -> None:
        head = {name: name for name in self.columns}
        settled = self._text([head, *rows[:-1]])
        self.settled, self.last_row = len(settled), dict(rows[-1]) if rows else {}
        replace_text(self.path, (settled + self._text(rows[-1:])).decode())

    def _text(self, rows: Iterable[Row]) -> bytes:
        return csv_text([_cell(row.get(k)) for k in self.columns] for row in rows).encode()


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list) else value
