"""The reporter ``csv``: the run as a table, for spreadsheets and pandas."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
from attrs import field

from altcore.plugin import RunRecord, replace_text
from altcore_reporters.tracked import lines_of

Rows = dict[int, dict[str, Any]]
"""By step, what stands in a row."""


@attrs.define(eq=False)
class CsvTracker:
    """Writes reports/metrics.csv: a row a step, a column a value.

    An evaluation stands in the row of its step. A cell is empty where a step has no such value; a
    list is JSON. The file is whole after each line.
    """

    path: Path = field(init=False, default=Path())
    columns: list[str] = field(init=False, factory=list)
    last_rows: Rows = field(init=False, factory=dict)
    """The last two, which may get more values."""
    settled: int = field(init=False, default=0)
    """Bytes of the file before these."""

    def start(self, record: RunRecord) -> None:
        """Write what is recorded so far, instead of what the file has."""
        assert record.directory is not None
        self.path = record.directory / "reports" / "metrics.csv"
        self.path.parent.mkdir(exist_ok=True)
        rows: Rows = {}
        for step, values, _ in lines_of(record):
            rows.setdefault(step, {"step": step}).update(values)
        self.columns = list(dict.fromkeys(["step", *(k for row in rows.values() for k in row)]))
        self._write_all(rows)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Write the row of a step, or its new values."""
        self.last_rows.setdefault(step, {"step": step}).update(values)
        new = [name for name in values if name not in self.columns]
        if new:
            with self.path.open(newline="") as file:
                known = {int(row["step"]): row for row in csv.DictReader(file)}
            self.columns += new
            self._write_all({**known, **self.last_rows})
            return
        with self.path.open("r+b") as file:
            file.seek(self.settled)
            self.settled += file.write(self._settle())
            file.write(self._text(self.last_rows.values()))
            file.truncate()

    def alert(self, level: str, title: str, text: str, wait: float) -> None:
        """Say nothing: a table has no place for words."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """The file is whole."""

    def _write_all(self, rows: Rows) -> None:
        """Write the table anew, if the file is another."""
        self.last_rows = dict(rows)
        head = self._text([{name: name for name in self.columns}])
        settled = head + self._settle()
        self.settled = len(settled)
        whole = settled + self._text(self.last_rows.values())
        if not (self.path.is_file() and self.path.read_bytes() == whole):
            replace_text(self.path, whole.decode())

    def _settle(self) -> bytes:
        """Return the rows before the last two, and forget them."""
        rows = sorted(self.last_rows.items())
        self.last_rows = dict(rows[-2:])
        return self._text(row for _, row in rows[:-2])

    def _text(self, rows: Iterable[Mapping[str, Any]]) -> bytes:
        out = io.StringIO()
        writer = csv.DictWriter(out, self.columns, lineterminator="\n")
        for row in rows:
            writer.writerow(
                {k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()}
            )
        return out.getvalue().encode()
