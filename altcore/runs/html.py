"""A run as a notebook shows it: its verdict, the curve of its loss, and its summary."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

from altcore.runs.summary_text import summary_lines

WIDTH, HEIGHT, POINTS = 480, 96, 240
"""Of the curve, in pixels; and the most points of it."""


def run_html(summary: Mapping[str, Any], losses: Sequence[float | None]) -> str:
    """Return what a notebook shows of a run; every text of it is escaped.

    ``summary`` has the keys of `Summary`, and ``losses`` are those of its steps.
    """
    rows = dict(summary_lines(summary))
    head = f"<strong>{escape(summary['name'])}</strong>: {escape(rows.pop('verdict'))}"
    return f"<div>{head}</div>{_curve(losses)}{table_html([*rows.items()])}"


def table_html(rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> str:
    """Return rows of text as a table, with a row of headings if there are any."""
    cells = [f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>"] if head else []
    style = ' style="text-align:left"'
    cells += [
        f"<tr>{''.join(f'<td{style}>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    ]
    return f"<table>{''.join(cells)}</table>"


def _curve(losses: Sequence[float | None]) -> str:
    """Return the training loss as a picture without axes; nothing if it was never finite."""
    values = [math.nan if loss is None else loss for loss in losses[:: len(losses) // POINTS + 1]]
    known = [value for value in values if math.isfinite(value)]
    if len(known) < 2:
        return ""
    low, high = min(known), max(known)
    title = f"training loss, from {known[0]:.5g} to {known[-1]:.5g}"
    lines = "".join(f'<polyline points="{points}"/>' for points in _pieces(values, low, high))
    return (
        f'<svg role="img" aria-label="{title}" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="-2 -2 {WIDTH + 4} {HEIGHT + 4}" fill="none" stroke="currentColor" '
        f'stroke-width="1.5"><title>{title}</title>{lines}</svg>'
    )


def _pieces(values: Sequence[float], low: float, high: float) -> Iterator[str]:
    """Yield the points of each piece of the curve between values that are not finite."""
    span = high / 2 - low / 2 or 1.0
    for is_finite, piece in groupby(enumerate(values), lambda point: math.isfinite(point[1])):
        if is_finite:
            places = (
                (WIDTH * i / (len(values) - 1), HEIGHT * ((high / 2 - value / 2) / span))
                for i, value in piece
            )
            yield " ".join(f"{x:.0f},{y:.0f}" for x, y in places)
