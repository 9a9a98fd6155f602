"""The arms of a comparison as data: what each is called, and everything in which it differs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from attrs import evolve, field, frozen

from altcore.config import TrainConfig
from altcore.errors import BadInput, Source, keyed, located
from altcore.hooks import build
from altcore.recipes import (
    NAMED,
    Cast,
    Layer,
    Place,
    Recipe,
    ResolvedRecipe,
    operands_of,
    read_rounding,
    takes_format,
)
from altcore.registry import entries, find
from altcore.study.keys import format_key, recipe_key, run_key
from altcore.yaml_files import is_yaml_file, load_yaml


@frozen
class Entrants:
    """What is compared, as it was asked."""

    formats: Sequence[str] = ()
    recipes: Sequence[str] = ("master",)
    """Those that each format is put into."""
    roundings: Sequence[str] = ()
    """As ``ROUNDING`` or ``ROLE=ROUNDING``; if there are none, recipes say it."""
    optimizers: Sequence[str] = ()
    """As ``NAME`` or ``NAME:KEY=VALUE:...``; if there are none, that of the configuration."""
    arms: Mapping[str, str] = field(factory=dict)
    """Recipes by the names that they shall have: ``RECIPE``, ``FORMAT:RECIPE``, a format, none."""
    against: str | None = None
    """The arm that all others are held against, or a format, recipe, rounding or optimizer: then
    each is held against the arm that differs from it in that alone."""

    def to_plain(self) -> dict[str, Any]:
        """Return what is compared as plain data, for the record."""
        lists = {k: list(getattr(self, k)) for k in ("formats", "recipes", "roundings")}
        return {**lists, "optimizers": list(self.optimizers), "arms": dict(self.arms)}


@frozen
class Contender:
    """An arm of a comparison."""

    name: str
    """In tables, and for ``--against``: in what it differs from others, with slashes between."""
    start: str
    """What its recipe is called, whatever the rounding and the optimizer are."""
    format: str | None
    """As it was given, as all else is; None if the recipe has formats of its own."""
    recipe: str
    rounding: str | None
    optimizer: str
    plan: ResolvedRecipe = field(repr=False)
    key: str
    """The beginning of the names of its runs, whatever else is compared."""
    called: str
    """Its format, or where it has no format its start, in the name of a study."""
    keys: Mapping[str, Any] = field(factory=dict, repr=False)
    """The keys of the configuration that are its own."""

    @property
    def recipe_key(self) -> str:
        """The recipe in the names of runs."""
        return recipe_key(self.recipe)

    @property
    def quantized(self) -> frozenset[str]:
        """The layers that its recipe quantizes."""
        return frozenset(name for name, casts in self.plan.items() if any(casts.values()))


@frozen
class _Start:
    """A recipe before roundings and optimizers multiply it."""

    name: str
    format: str | None
    recipe: str
    made: Recipe
    called: str
    """As a contender's."""
    key: str
    """The beginning of a contender's."""


def contenders(config: TrainConfig, layers: Sequence[Layer], entrants: Entrants) -> list[Contender]:
    """Return the arms of a comparison; `BadInput` names the option at fault."""
    optimizers = {o: optimizer_keys(o, config) for o in entrants.optimizers or [config.optimizer]}
    roundings: Sequence[str | None] = entrants.roundings or [None]
    made = []
    for start, rounding, optimizer in product(_starts(config, entrants), roundings, optimizers):
        recipe = start.made if rounding is None else rounded(start.made, rounding)
        varying = [(rounding, roundings), (optimizer, optimizers)]
        parts = [start.name, *(str(part) for part, values in varying if len(values) > 1)]
        made.append(
            Contender(
                name="/".join(parts),
                start=start.name,
                format=start.format,
                recipe=start.recipe,
                rounding=rounding,
                optimizer=optimizer,
                plan=recipe.resolve(layers),
                key=run_key("-".join(filter(None, (start.key, rounding, optimizer)))),
                called=start.called,
                keys=optimizers[optimizer],
            )
        )
    if not made:
        raise BadInput("compare needs --formats, or recipes as --arms")
    _refuse_alike(made)
    return made


def _refuse_alike(made: Iterable[Contender]) -> None:
    keys: dict[str, str] = {}
    for contender in made:
        if contender.key in keys:
            raise BadInput(
                f"the runs of {contender.name} would be called {contender.key}, as those of "
                f"{keys[contender.key]} are: give it another name by --arms NAME=RECIPE"
            )
        keys[contender.key] = contender.name


# Recipes ---------------------------------------------------------------------------------------


def _starts(config: TrainConfig, entrants: Entrants) -> Iterator[_Start]:
    for fmt, recipe in product(entrants.formats, entrants.recipes):
        flags = Source(flag="--formats"), Source(flag="--recipes")
        own = contender_config(config, fmt, recipe, *flags)
        name = f"{fmt}/{recipe}" if len(entrants.recipes) > 1 else fmt
        called = "none" if own.format is None else format_key(own.format)
        key = f"{called}-{recipe_key(recipe)}"
        yield _Start(name, fmt, recipe, own.make_recipe(), called, key)
    for name, text in entrants.arms.items():
        flag = Source(flag=f"--arms {name}")
        own_format, recipe = format_and_recipe(text)
        own = contender_config(config, own_format, recipe, flag, flag)
        yield _Start(name, own_format, recipe, own.make_recipe(), run_key(name), name)


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


def rounded(recipe: Recipe, text: str) -> Recipe:
    """Return a recipe with another rounding: of all that it casts, or of some roles.

    Args:
        recipe: any; what it leaves alone stays so.
        text: ``stochastic``, with settings as ``stochastic:random_bits=8``; or for some roles, with
            ``+`` between them, ``stored_weight=stochastic``.
    """
    head, *given = text.split(":")
    roles, equals, name = head.rpartition("=")
    settings = settings_in(given, "--roundings", text)
    place = Place("--roundings", text, Source(flag="--roundings"))
    rounding, stochastic = read_rounding({"kind": name, **settings} if settings else name, place)
    with keyed("--roundings"):
        wanted = {o for role in roles.split("+") for o in operands_of(role)} if equals else None

    def change(operand: str, cast: Cast) -> Cast:
        if wanted is None or operand in wanted:
            return evolve(cast, rounding=rounding, stochastic=stochastic)
        return cast

    return changed(recipe, change)


def changed(recipe: Recipe, change: Callable[[str, Cast], Cast]) -> Recipe:
    """Return a recipe with each of its casts changed; ``change`` takes the operand as well."""
    rules = [
        evolve(rule, casts={o: cast and change(o, cast) for o, cast in rule.casts.items()})
        for rule in recipe.rules
    ]
    return evolve(recipe, rules=tuple(rules))


# Optimizers, and settings ------------------------------------------------------------------------


def optimizer_keys(text: str, config: TrainConfig) -> dict[str, Any]:
    """Return the keys that choose an optimizer written as ``NAME`` or ``NAME:KEY=VALUE:...``.

    Leaves out settings of other optimizers, which would not be active.
    """
    name, *settings = text.split(":")
    names = {e.name for e in entries() if e.kind == "optimizer"}
    given = settings_in(settings, "--optimizers", text)
    own = {**config.settings.get(name, {}), **given}
    others = {n: v for n, v in config.settings.items() if n not in names}
    made = {"optimizer": name, "settings": {**others, **({name: own} if own else {})}}
    # A wrong name or setting is found before anything runs.
    source = Source(flag=f"--optimizers {text}")
    sources = {"optimizer": source, **{f"{name}.{key}": source for key in own}}
    with located(sources), keyed("optimizer"):
        build(find(name, ("optimizer",)).load(), own, name)
    return made


def settings_in(texts: Iterable[str], option: str, whole: str) -> dict[str, Any]:
    """Return the settings that are given as ``KEY=VALUE`` in a text; `BadInput` if one is not."""
    given: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise BadInput(f"{text!r} is not KEY=VALUE", key=option, part=whole)
        if key in given:
            raise BadInput(f"{key} is given twice", key=option, part=whole)
        given[key] = load_yaml(value, Source(flag=option), key)
    return given
