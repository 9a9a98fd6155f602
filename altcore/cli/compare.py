"""``altcore compare``: how do formats, recipes and optimizers compare?"""

from __future__ import annotations

import json

import click

from altcore.cli.explain import study_options
from altcore.cli.train import overrides_of
from altcore.errors import BadInput


@click.command()
@click.option("--formats", metavar="A,B,...", help="Number formats, by name.")
@click.option(
    "--recipes", metavar="A,B,...", help="Recipes, by name or .yaml file (default master)."
)
@click.option("--optimizers", metavar="A,B,...", help="Optimizers: NAME or NAME:KEY=VALUE.")
@study_options
def compare(
    formats: str | None,
    recipes: str | None,
    optimizers: str | None,
    files: tuple[str, ...],
    sets: tuple[str, ...],
    seeds: int,
    within: float,
    budget: float | None,
    name: str | None,
    as_json: bool,
    **flags: tuple[str, ...],
) -> None:
    """Compare formats on identical batches, with intervals and a frozen control.

    \b
    altcore compare --formats E5M2,E3M4,E7M0 --recipes master,pure --set gpt.size=tiny
    Interrupted, the same command goes on.
    """  # noqa: D301 - click's mark for lines to be kept is a real backspace
    if not formats:
        raise BadInput("compare needs --formats, names with commas between them")
    if len(files) > 1:
        raise BadInput("--config is given twice")
    from altcore.study import commands

    options = commands.Options(
        file=files[0] if files else None,
        overrides=overrides_of(flags, sets),
        seeds=seeds,
        within=within,
        budget=budget,
        name=name,
        tell=lambda line: click.echo(line, err=True),
    )
    found, folder = commands.compare(
        options, _names(formats), _names(recipes or "master"), _names(optimizers or "")
    )
    if as_json:
        click.echo(json.dumps(found, indent=1, default=str))
    else:
        click.echo((folder / "compare.md").read_text())
        click.echo(f"Written: {folder / 'compare.md'} and compare.json", err=True)


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    twice = {n for n in names if names.count(n) > 1}
    if twice:
        raise BadInput(f"{', '.join(sorted(twice))} is given twice")
    return names
