"""Printing: names that others chose reach the terminal as text, never as commands to it."""

from __future__ import annotations

from typing import Any

import click

from altcore.builtin_types import printable


def echo(text: object = "", **options: Any) -> None:
    """Print a line as `click.echo` does, control characters as their escapes."""
    click.echo(printable(str(text)), **options)
