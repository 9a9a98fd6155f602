"""The recipes of arms, by what a comparison is asked: formats in recipes, recipes by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

from attrs import evolve, frozen

from altcore.config import TrainConfig
from altcore.errors import BadInput, Source, keyed, located
from altcore.recipes import (
    NAMED,
    Cast,
    Layer,
    Place,
    Recipe,
    operands_of,
    read_rounding,
    takes_format,
)
from altcore.study.ingredients import ablations, changed
from altcore.study.keys import format_key, recipe_key, run_key
from altcore.study.own_keys import settings_in
from altcore.yaml_files import is_yaml_file


@frozen
class Start:
    """A recipe of arms, before roundings, optimizers and plugins multiply it."""

    name: str
    format: str | None
    """As it was given; None if the recipe has formats of its own."""
    recipe: str
    made: Recipe
    called: str
    """Its format, or where it has no format its name, in the name of a study."""
    key: str
    """In the names of runs."""
    ablates: str | None = None
    """The recipe that it is without one ingredient."""


def starts(
    config: TrainConfig,
    layers: Sequence[Layer],
    formats: Sequence[str],
    recipes: Sequence[str],
    arms: Mapping[str, str],
    ablate: Mapping[str, str],
) -> Iterator[Start]:
    """Yield the recipes of a comparison's arms; the arguments are as in `Entrants`."""
    for fmt, recipe in product(formats, recipes):
        flags = Source(flag="--formats"), Source(flag="--recipes")
        own = contender_config(config, fmt, recipe, *flags)
        name = f"{fmt}/{recipe}" if len(recipes) > 1 else fmt
        called = "none" if own.format is None else format_key(own.format)
        key = f"{called}-{recipe_key(recipe)}"
        yield Start(name, fmt, recipe, own.make_recipe(), called, key)
    for name, text in arms.items():
        yield _named(config, name, text, "--arms")
    for name, text in ablate.items():
        whole = _named(config, name, text, "--ablate")
        yield whole
        without = ablations(whole.made, layers)
        if not without:
            raise BadInput("it has no ingredient to leave out", key="--ablate", part=text)
        for ingredient, left in without.items():
            own_name = f"{name}-{ingredient}"
            yield evolve(whole, name=own_name, made=left, key=own_name, ablates=name)


def _named(config: TrainConfig, name: str, text: str, option: str) -> Start:
    fmt, recipe = format_and_recipe(text)
    flag = Source(flag=f"{option} {name}")
    own = contender_config(config, fmt, recipe, flag, flag)
    return Start(name, fmt, recipe, own.make_recipe(), run_key(name), name)


def format_and_recipe(text: str) -> tuple[str | None, str]:
    """Return the format and the recipe of ``FORMAT:RECIPE``, a recipe, ``none``, or a format.

    >>> format_and_recipe("nvfp4"), format_and_recipe("E4M3:pure"), format_and_recipe("E4M3")
    ((None, 'nvfp4'), ('E4M3', 'pure'), ('E4M3', 'master'))
    """
    fmt, colon, recipe = text.partition(":")
    if colon:
        return fmt, recipe
    if text in NAMED or is_yaml_file(text):
        return None, text
    return text, "master"


def contender_config(
    config: TrainConfig, fmt: str | None, recipe: str, format_from: Source, recipe_from: Source
) -> TrainConfig:
    """Return an arm's keys. Raises `BadInput`, which names the option that set it."""
    with located({"format": format_from, "recipe": recipe_from}):
        with keyed("format"):
            own = config.evolve(format=fmt, recipe=recipe)
        if fmt is None and takes_format(own.recipe):
            problem = "it says FORMAT, and none is given"
            raise BadInput(problem, key="recipe", part=recipe, hint=f"as E4M3:{recipe}")
        return own


def rounded(config: TrainConfig, start: Start, text: str) -> Recipe:
    """Return the recipe of a start with another rounding: of all that it casts, or of some roles.

    Args:
        config: of all runs.
        start: what its recipe leaves alone stays so.
        text: ``stochastic``, with settings as ``stochastic:random_bits=8``; or for some roles, with
            ``+`` between them, ``stored_weight=stochastic``.

    Raises:
        BadInput: if it cannot be read, or the recipe casts some of the roles nowhere. One that
            casts nothing at all may stand beside others.
    """
    head, *given = text.split(":")
    roles, equals, name = head.rpartition("=")
    settings = settings_in(given, "--roundings", text)
    place = Place("--roundings", text, Source(flag="--roundings"))
    rounding, stochastic = read_rounding({"kind": name, **settings} if settings else name, place)
    with keyed("--roundings"):
        named = {role: set(operands_of(role)) for role in roles.split("+")} if equals else {}
    wanted = set().union(*named.values()) if named else None
    held = _cast_by(start.made)
    for role, operands in named.items():
        if held and not held & operands:
            raise BadInput(
                f"the recipe {start.recipe} leaves {role} alone, so its rounding changes nothing",
                key="--roundings",
                part=text,
                hint=_recipes_with(config, start.format, operands),
            )

    def change(operand: str, cast: Cast) -> Cast:
        if wanted is None or operand in wanted:
            return evolve(cast, rounding=rounding, stochastic=stochastic)
        return cast

    return changed(start.made, change)


def _cast_by(recipe: Recipe) -> set[str]:
    """Return the operands that a recipe casts in some layer."""
    return {o for rule in recipe.rules for o, cast in rule.casts.items() if cast}


def _recipes_with(config: TrainConfig, fmt: str | None, operands: set[str]) -> str:
    """Return which of the recipes that take a format cast some of the operands, as a hint."""
    taking = [name for name in NAMED if takes_format(name)] if fmt else []
    made = {name: config.evolve(format=fmt, recipe=name).make_recipe() for name in taking}
    found = [name for name, recipe in made.items() if _cast_by(recipe) & operands]
    return f"--recipes {' or '.join(found)} would have it" if found else ""
