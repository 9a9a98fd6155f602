"""What the commands of studies share: options, and how they end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from altcore.cli.options import AS_JSON, once
from altcore.cli.train import FLAGS, overrides_of

if TYPE_CHECKING:
    from altcore.study import Options

SHARED = ("workload", "optimizer", "data", "device", "seed", "steps")
"""Flags of ``train`` that a study has too."""


def study_options(command: Any) -> Any:
    """Add the options that all studies share."""
    options = [
        *(once(f"--{name}", metavar="VALUE", help=FLAGS[name]) for name in SHARED),
        once("--config", "file", metavar="FILE", help="A file of keys."),
        click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Set any key."),
        once("--seeds", type=int, default=5, show_default=True, help="Runs of each arm, paired."),
        once(
            "--within",
            type=float,
            default=0.05,
            show_default=True,
            help="A gap that is training.",
        ),
        once("--budget", type=float, metavar="MINUTES", help="Time for all runs."),
        once("--name", help="Folder of the study, in studies/."),
        AS_JSON,
    ]
    for option in reversed(options):
        command = option(command)
    return command


def split(shared: dict[str, Any]) -> tuple[list[tuple[str, Any, str]], dict[str, Any]]:
    """Return the configuration keys among the shared options, and the other ones."""
    flags = {name: shared[name] for name in SHARED}
    rest = {k: v for k, v in shared.items() if k not in (*SHARED, "sets")}
    return overrides_of(flags, shared["sets"]), rest


def asked(overrides: list[tuple[str, Any, str]], rest: Mapping[str, Any]) -> Options:
    """Return what the study is asked."""
    from altcore.study import Options

    return Options(overrides=overrides, tell=lambda line: click.echo(line, err=True), **rest)


def show(found: Mapping[str, Any], folder: Path, as_json: bool) -> None:
    """Print what a study found."""
    if as_json:
        click.echo(json.dumps(found, indent=1, default=str))
        return
    name = found["about"]["page"]
    page = folder / f"{name}.md"
    click.echo(page.read_text())
    click.echo(f"Written: {page} and {name}.json", err=True)
