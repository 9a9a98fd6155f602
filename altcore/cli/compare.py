"""``altcore compare``: how do formats, recipes and optimizers compare?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import click

from altcore.cli.options import ListCommand, names, once
from altcore.cli.study_options import asked, show, split, study_options
from altcore.errors import BadInput, Source

OF_ARM = re.compile(r"(.+):([A-Za-z][\w.-]*)=(.*)", re.DOTALL)
"""A key for the runs of an arm, whose name may hold colons."""
LISTS = {
    "formats": "Number formats: names or .yaml files.",
    "recipes": "What each format is put into: recipes' names or .yaml files (default master).",
    "roundings": "Roundings of what recipes cast: ROUNDING or ROLE=ROUNDING (default theirs).",
    "optimizers": "Optimizers: NAME or NAME:KEY=VALUE (default adamw).",
    "plugins": "Plugins: NAME or NAME:KEY=VALUE, with + between several, or none.",
    "arms": "Recipes by name: NAME=RECIPE or NAME=FORMAT:RECIPE; none is float32.",
    "ablate": "Recipes, alike, to be run without each of their ingredients, too.",
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
    help="Print differences to this arm, or to the one that differs in this one part alone.",
)
@once(
    "--metric",
    type=click.Choice(["train", "val"]),
    default="train",
    help="The loss that is compared: of the last training steps (default), or of validation.",
)
@study_options
def compare(against: str | None, metric: str, as_json: bool, **shared: Any) -> None:
    """Compare formats on identical batches, with intervals and a frozen control.

    \b
    altcore compare --formats E5M2 E3M4 E7M0 --recipes master pure --set gpt.size=tiny
    altcore compare --formats E4M3 --roundings nearest-even stochastic --against nearest-even
    altcore compare --arms full=nvfp4 own=FILE.yaml float32=none --against full
    altcore compare --ablate nvfp4

    If it is interrupted, repeat the command: finished runs are kept.
    """  # noqa: D301 - click's mark for lines to be kept is a real backspace
    lists = {name: shared.pop(name) for name in LISTS}
    given: dict[str, Any] = {
        name: _once_each(text, f"--{name}") for name, text in lists.items() if text is not None
    }
    if not given.keys() & {"formats", "arms", "ablate"}:
        raise BadInput("compare needs --formats, --arms or --ablate, each with names")
    if "recipes" in given and "formats" not in given:
        raise BadInput("they are for --formats; --arms takes a recipe alone", key="--recipes")
    shared["sets"], settings = _of_arms(shared["sets"])
    overrides, rest = split(shared)
    for key, _, source in overrides:
        if key in ("format", "recipe"):
            raise BadInput(f"compare takes it by --{key}s", key=key, source=source)
    from altcore.study import Entrants, run_compare

    given |= {name: _named(given.get(name, []), f"--{name}") for name in ("arms", "ablate")}
    entrants = Entrants(**given, settings=settings, against=against, metric=metric)
    found, folder = run_compare(asked(overrides, rest), entrants)
    show(found, folder, as_json)


def _of_arms(sets: Sequence[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Return what ``--set`` gives for all runs, and by ``ARM:KEY=VALUE`` for those of an arm."""
    from altcore.yaml_files import load_yaml

    of_all: list[str] = []
    of_arms: dict[str, dict[str, Any]] = {}
    for text in sets:
        found = OF_ARM.fullmatch(text)
        if found is None or not set(text.partition("=")[0]) & set("/:"):
            of_all.append(text)
            continue
        arm, key, value = found.groups()
        own = of_arms.setdefault(arm, {})
        if key in own:
            raise BadInput(f"{key} is given twice", key="--set", part=arm)
        own[key] = load_yaml(value, Source(flag="--set"), key)
    return of_all, of_arms


def _once_each(text: str, option: str) -> list[str]:
    found = names([text], option)
    twice = {n for n in found if found.count(n) > 1}
    if twice:
        raise BadInput(f"{', '.join(sorted(twice))} is given twice", key=option)
    return found


def _named(texts: Sequence[str], option: str) -> dict[str, str]:
    """Return recipes by the names that they are given; one without a name is called as it is."""
    arms: dict[str, str] = {}
    for text in texts:
        name, equals, recipe = text.partition("=")
        if not name or (equals and not recipe):
            raise BadInput("NAME=RECIPE is needed", key=option, part=text)
        if name in arms:
            raise BadInput(f"{name} is given twice", key=option)
        arms[name] = recipe if equals else name
    return arms
