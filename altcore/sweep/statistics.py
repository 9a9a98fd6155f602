"""Means over the seeds of a sweep, without runs whose settings a retry changed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from statistics import fmean, stdev
from typing import Any

from altcore.sweep.table import Table


def statistics_of(table: Table, *, with_changed: bool = False) -> tuple[list[str], list[list[Any]]]:
    """Return a head and a row for each variant and point of the grid.

    ``runs`` is how many count, and ``collapsed`` how many of these collapsed. Of every value there
    are the mean and the standard deviation, over the ``n`` runs that have a finite number.

    Args:
        table: of the sweep.
        with_changed: whether runs count whose settings a retry changed.
    """
    point = ["variant", *(key for key in table.factors if key != "seed")]
    groups: dict[str, tuple[list[Any], list[Mapping[str, Any]]]] = {}
    for row in table.rows:
        if row["variant"] is None:  # nobody can read of which one the job is
            continue
        place = [row.get(key) for key in point]
        _, own = groups.setdefault(repr(place), (place, []))
        if is_counted(row, with_changed):
            own.append(row)
    values = [v for v in table.values if any(True for _ in numbers(table.rows, v))]
    told = (f"{value}_{what}" for value in values for what in ("mean", "sd", "n"))
    head = [*point, "runs", "collapsed", *told]
    made = []
    for place, rows in groups.values():
        line = [*place, len(rows), sum(bool(row["collapsed"]) for row in rows)]
        for value in values:
            own_numbers = list(numbers(rows, value))
            line.append(fmean(own_numbers) if own_numbers else None)
            line.append(stdev(own_numbers) if len(own_numbers) > 1 else None)
            line.append(len(own_numbers))
        made.append(line)
    return head, made


def is_counted(row: Mapping[str, Any], with_changed: bool) -> bool:
    """Return whether a row of the table counts; see `statistics_of`."""
    return bool(row["in_statistics"] or (with_changed and row["state"] == "completed"))


def numbers(rows: Iterable[Mapping[str, Any]], name: str) -> Iterator[float]:
    """Yield the finite numbers of a column."""
    for row in rows:
        value = row.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield value
