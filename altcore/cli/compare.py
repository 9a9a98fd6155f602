"""``altcore compare``: how do formats, recipes and optimizers compare?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from altcore.cli.options import ListCommand, names, once
from altcore.cli.study_options import asked, show, split, study_options
from altcore.errors import BadInput

LISTS = {
    "formats": "Number formats: names or .yaml files.",
    "recipes": "What each format is put into: recipes' names or .yaml files (default master).",
    "roundings": "Roundings of what recipes cast: ROUNDING or ROLE=ROUNDING (default theirs).",
    "optimizers": "Optimizers: NAME or NAME:KEY=VALUE (default adamw).",
    "arms": "Recipes by name: NAME=RECIPE or NAME=FORMAT:RECIPE; none is float32.",
}


def _lists(command: Any) -> Any:
    for name, text in reversed(LISTS.items()):
        command = once(f"--{name}", metavar="A B ...", help=text)(command)
    return command


@click.command(cls=ListCommand, lists=[f"--{name}" for name in LISTS])
@_lists
@once(
    "--against",
    metavar="ARM",
    help="Print differences to this arm; or to the one with this format, rounding, ...",
)
@study_options
def compare(against: str | None, as_json: bool, **shared: Any) -> None:
    """Compare formats on identical batches, with intervals and a frozen control.

    \b
    altcore compare --formats E5M2 E3M4 E7M0 --recipes master pure --set gpt.size=tiny
    altcore compare --formats E4M3 --roundings nearest-even stochastic --against nearest-even
    altcore compare --arms full=nvfp4 own=FILE.yaml float32=none --against full

    If it is interrupted, repeat the command: finished runs are kept.
    """  # noqa: D301 - click's mark for lines to be kept is a real backspace
    lists = {name: shared.pop(name) for name in LISTS}
    if lists["formats"] is None and lists["arms"] is None:
        raise BadInput("compare needs --formats or --arms, with commas or spaces between names")
    if lists["formats"] is None and lists["recipes"] is not None:
        raise BadInput("they are for --formats; --arms takes a recipe alone", key="--recipes")
    overrides, rest = split(shared)
    for key, _, source in overrides:
        if key in ("format", "recipe"):
            raise BadInput(f"compare takes it by --{key}s", key=key, source=source)
    from altcore.study import Entrants, run_compare

    given = {name: _once_each(text, f"--{name}") for name, text in lists.items() if text}
    arms = _named(given.pop("arms", []))
    entrants = Entrants(**given, arms=arms, against=against)
    found, folder = run_compare(asked(overrides, rest), entrants)
    show(found, folder, as_json)


def _once_each(text: str, option: str) -> list[str]:
    found = names([text], option)
    twice = {n for n in found if found.count(n) > 1}
    if twice:
        raise BadInput(f"{', '.join(sorted(twice))} is given twice", key=option)
    return found


def _named(texts: Sequence[str]) -> dict[str, str]:
    """Return recipes by the names that they are given; one without a name is called as it is."""
    arms: dict[str, str] = {}
    for text in texts:
        name, equals, recipe = text.partition("=")
        if not name or (equals and not recipe):
            raise BadInput("NAME=RECIPE is needed", key="--arms", part=text)
        if name in arms:
            raise BadInput(f"{name} is given twice", key="--arms")
        arms[name] = recipe if equals else name
    return arms
