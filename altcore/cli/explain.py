"""``altcore explain``: where does a format break?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from altcore.cli.train import FLAGS, overrides_of
from altcore.errors import BadInput

SHARED = ("workload", "optimizer", "data", "device", "seed", "steps")
"""Flags of ``train`` that a study has too."""


def study_options(command: Any) -> Any:
    """Add the options that all studies share."""
    options = [
        *(
            click.option(f"--{name}", multiple=True, metavar="VALUE", help=FLAGS[name])
            for name in SHARED
        ),
        click.option("--config", "files", multiple=True, metavar="FILE", help="A file of keys."),
        click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Set any key."),
        click.option("--seeds", default=5, show_default=True, help="Runs of each arm, paired."),
        click.option("--within", default=0.05, show_default=True, help="A gap that is training."),
        click.option("--budget", type=float, metavar="MINUTES", help="Time for all runs."),
        click.option("--name", help="Folder of the study, in studies/."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.option("--format", "fmt", metavar="NAME", help="Number format that is asked about.")
@click.option("--recipe", metavar="VALUE", help="Where it is used (default full).")
@study_options
def explain(
    fmt: str | None,
    recipe: str | None,
    files: tuple[str, ...],
    sets: tuple[str, ...],
    seeds: int,
    within: float,
    budget: float | None,
    name: str | None,
    as_json: bool,
    **flags: tuple[str, ...],
) -> None:
    """Find where training breaks in a format, by controlled runs.

    \b
    altcore explain --format E7M0 --set gpt.size=tiny --budget 20
    Interrupted, the same command goes on.
    """  # noqa: D301 - click's mark for lines to be kept is a real backspace
    if fmt is None and recipe is None:
        raise BadInput("explain needs --format, or a --recipe with formats of its own")
    if len(files) > 1:
        raise BadInput("--config is given twice")
    overrides = overrides_of(flags, sets)
    if fmt is not None:
        overrides.append(("format", fmt, " by --format"))
    from altcore.study import commands

    overrides.append(("recipe", recipe or commands.default_recipe(fmt), " by --recipe"))
    options = commands.Options(
        file=files[0] if files else None,
        overrides=overrides,
        seeds=seeds,
        within=within,
        budget=budget,
        name=name,
        tell=lambda line: click.echo(line, err=True),
    )
    found, folder = commands.explain(options)
    if as_json:
        click.echo(json.dumps(found, indent=1, default=str))
    else:
        click.echo((folder / "explain.md").read_text())
        click.echo(f"Written: {_shown(folder / 'explain.md')} and explain.json", err=True)


def _shown(path: Path) -> str:
    return str(path)
