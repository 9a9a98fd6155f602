"""Options that the commands of sweeps share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from altcore.cli.options import once

if TYPE_CHECKING:
    from altcore.sweep import SweepFile

SWEEPS_DIR = once("--sweeps-dir", metavar="FOLDER", default="sweeps", help="Where the sweeps are.")
_ASKED = (
    once("--name", help="The sweep's name, which needs no FILE then."),
    click.option(
        "--param",
        "params",
        multiple=True,
        metavar="KEY=VALUE,VALUE",
        help="A key of the grid. Repeatable.",
    ),
    click.option(
        "--variant",
        "variants",
        multiple=True,
        metavar="NAME[:KEY=VALUE,...]",
        help="A variant, and what it has instead of the base. Repeatable.",
    ),
    click.option(
        "--set",
        "sets",
        multiple=True,
        metavar="KEY=VALUE",
        help="A key of the base; VALUE is YAML. Repeatable.",
    ),
    once("--seeds", metavar="N|SEED,...", help="How many seeds, or which."),
)


def asking(command: Any) -> Any:
    """Add the options that ask for jobs as a sweep file does."""
    for option in reversed(_ASKED):
        command = option(command)
    return command


def asked_of(file: str | None, given: dict[str, Any], sweeps_dir: str) -> SweepFile:
    """Return the sweep that a file, or the name of one that was begun, and options ask for."""
    from altcore.sweep import Given, asked_sweep, file_of

    return asked_sweep(file and file_of(file, sweeps_dir), Given(**given))
