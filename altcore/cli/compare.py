"""``altcore compare``: how do formats, recipes and optimizers compare?"""

from __future__ import annotations

from typing import Any

import click

from altcore.cli.options import ListCommand, names, once
from altcore.cli.study_options import asked, show, split, study_options
from altcore.errors import BadInput


@click.command(cls=ListCommand, lists=("--formats", "--recipes", "--optimizers"))
@once("--formats", metavar="A B ...", help="Number formats: names or .yaml files.")
@once("--recipes", metavar="A B ...", help="Recipes: names or .yaml files (default master).")
@once("--optimizers", metavar="A B ...", help="Optimizers: NAME or NAME:KEY=VALUE (default adamw).")
@study_options
def compare(
    formats: str | None, recipes: str | None, optimizers: str | None, as_json: bool, **shared: Any
) -> None:
    """Compare formats on identical batches, with intervals and a frozen control.

    \b
    altcore compare --formats E5M2 E3M4 E7M0 --recipes master pure --set gpt.size=tiny

    If it is interrupted, repeat the command: finished runs are kept.
    """  # noqa: D301 - click's mark for lines to be kept is a real backspace
    if formats is None:
        raise BadInput("compare needs --formats, names with commas or spaces between them")
    overrides, rest = split(shared)
    for key, _, source in overrides:
        if key in ("format", "recipe"):
            raise BadInput(f"compare takes it by --{key}s", key=key, source=source)
    from altcore.study import run_compare

    found, folder = run_compare(
        asked(overrides, rest),
        _once_each(formats, "--formats"),
        _once_each("master" if recipes is None else recipes, "--recipes"),
        [] if optimizers is None else _once_each(optimizers, "--optimizers"),
    )
    show(found, folder, as_json)


def _once_each(text: str, option: str) -> list[str]:
    found = names([text], option)
    twice = {n for n in found if found.count(n) > 1}
    if twice:
        raise BadInput(f"{', '.join(sorted(twice))} is given twice", key=option)
    return found
