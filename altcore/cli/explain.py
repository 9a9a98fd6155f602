"""``altcore explain``: where does a format break?"""

from __future__ import annotations

from typing import Any

import click

from altcore.cli.options import once
from altcore.cli.study_options import asked, show, split, study_options
from altcore.errors import DEFAULT, BadInput, Source, located


@click.command()
@once(
    "--format", "fmt", metavar="NAME", help="The number format in question: a name or a .yaml file."
)
@once(
    "--recipe", metavar="VALUE", help="Where it is used (default full; for block formats master)."
)
@study_options
def explain(fmt: str | None, recipe: str | None, as_json: bool, **shared: Any) -> None:
    """Find out where training breaks in a format, by controlled runs.

    \b
    altcore explain --format E7M0 --set gpt.size=tiny --budget 20

    If it is interrupted, repeat the command: finished runs are kept.
    """  # noqa: D301 - click's mark for lines to be kept is a real backspace
    from altcore.recipes import self_contained, takes_format
    from altcore.yaml_files import read_mapping

    overrides, rest = split(shared)
    file = rest["file"]
    with located({"config": Source(flag="--config")}):
        given = {} if file is None else read_mapping(file, "config")
    given |= {key: value for key, value, _ in overrides}
    if fmt is not None:
        overrides.append(("format", fmt, Source(flag="--format")))
    elif "format" not in given:
        named = given.get("recipe", "full") if recipe is None else recipe
        with located({} if recipe is None else {"recipe": Source(flag="--recipe")}):
            needs_format = takes_format(self_contained(named))
        if needs_format:
            raise BadInput("explain needs --format, or a --recipe with formats of its own")
    from altcore.study import default_recipe, run_explain

    if recipe is not None:
        overrides.append(("recipe", recipe, Source(flag="--recipe")))
    elif "recipe" not in given:
        overrides.append(("recipe", default_recipe(fmt or given["format"]), DEFAULT))
    found, folder = run_explain(asked(overrides, rest))
    show(found, folder, as_json)
