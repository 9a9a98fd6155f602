"""Printing: names that others chose reach the terminal as text, never as commands to it."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from itertools import zip_longest
from shutil import get_terminal_size
from typing import Any

import click

from altcore.builtin_types import printable

FEWEST = 8
"""Characters to which the last column of a table may be cut."""


def echo(text: object = "", **options: Any) -> None:
    """Print a line as `click.echo` does, control characters as their escapes."""
    click.echo(printable(str(text)), **options)


def say(text: str, level: str = "warning", who: str = "altcore", **facts: Any) -> None:
    """Tell something beside the output, in a line on standard error; with ``--log-json`` as JSON.

    ``level`` is info, warning or error. ``facts`` are for JSON alone.
    """
    line = " ".join(text.splitlines())
    if logs_json():
        from altcore.cli.log import log_line

        log_line(line, level, **facts)
    else:
        echo(line if level == "info" else f"{who}: {line}", err=True)


def logs_json() -> bool:
    """Whether the log is written as JSON lines."""
    if "structlog" not in sys.modules:  # and nobody waits for it here
        return False
    from altcore.cli.log import renders_json

    return renders_json()


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows below a head; on a terminal the last column is cut where the line would break."""
    table = [head, *rows]
    widths = [max(len(printable(line[i])) for line in table) for i in range(len(head) - 1)]
    room = (columns() or 10**6) - sum(w + 2 for w in widths)
    for line in table:
        cells = [f"{printable(c):<{w}}" for c, w in zip(line, widths, strict=False)]
        last = line[-1]
        if len(last) > room >= FEWEST:
            last = f"{last[: room - 1]}…"
        echo("  ".join([*cells, last]).rstrip())


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns of their own, on a terminal as wide as that is; an empty row is blank.

    The first column has the names, and the others share what is left.
    """
    count = max(map(len, rows))
    table = [[*map(printable, row), *[""] * (count - len(row))] for row in rows]
    widths = [max(len(row[i]) for row in table) for i in range(count)]
    if (room := columns()) is not None:
        share = (room - widths[0]) // (count - 1) - 2
        widths[1:] = [min(w, max(FEWEST, share)) for w in widths[1:]]
    for row in table:
        cells = [
            textwrap.wrap(cell, max(1, w), break_on_hyphens=False)
            for cell, w in zip(row, widths, strict=True)
        ]
        for parts in zip_longest(*cells, fillvalue=""):
            echo("  ".join(f"{part:<{w}}" for part, w in zip(parts, widths, strict=True)).rstrip())
        if not any(cells):
            echo()


def title(text: str) -> None:
    """Print a line in bold, where that is possible."""
    click.secho(printable(text), bold=True)


def columns() -> int | None:
    """Return how many characters fit on a line of standard output; None if it is no terminal."""
    return get_terminal_size().columns if sys.stdout.isatty() else None


def paragraph(text: str, indent: int = 2) -> None:
    """Print a text, on a terminal broken between words; later lines are indented."""
    width = columns()
    lines = [text]
    if width is not None and width > indent + 20:
        # A path stays in one piece, to be copied.
        lines = textwrap.wrap(
            text,
            width,
            subsequent_indent=" " * indent,
            break_on_hyphens=False,
            break_long_words=False,
        )
    for line in lines:
        echo(line)
