"""The arms of a comparison as data: what each is called, and everything in which it differs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

from attrs import Attribute, asdict, field, frozen

from altcore.config import TrainConfig
from altcore.errors import BadInput, nearest
from altcore.recipes import Layer, ResolvedRecipe
from altcore.study.arm_recipes import Start, rounded, starts
from altcore.study.keys import recipe_key, run_key
from altcore.study.measures import METRICS
from altcore.study.own_keys import NO_PLUGINS, Configure, own_keys


def _check_list(_: Any, part: Attribute[Any], value: Any) -> None:
    if isinstance(value, str):
        raise BadInput(f"a list of names is needed, not {value!r}", key=part.name)


def _check_metric(_: Any, part: Attribute[Any], value: Any) -> None:
    if value not in METRICS:
        raise BadInput(f"{value!r} is not {' or '.join(METRICS)}", key=f"--{part.name}")


@frozen
class Entrants:
    """What is compared, as it was asked."""

    formats: Sequence[str] = field(default=(), validator=_check_list)
    recipes: Sequence[str] = field(default=("master",), validator=_check_list)
    """Those that each format is put into."""
    roundings: Sequence[str] = field(default=(), validator=_check_list)
    """As ``ROUNDING`` or ``ROLE=ROUNDING``; if there are none, recipes say it."""
    optimizers: Sequence[str] = field(default=(), validator=_check_list)
    """As ``NAME`` or ``NAME:KEY=VALUE:...``; if there are none, that of the configuration."""
    plugins: Sequence[str] = field(default=(NO_PLUGINS,), validator=_check_list)
    """Alike, with ``+`` between several, or ``none``: besides those of all runs."""
    arms: Mapping[str, str] = field(factory=dict)
    """Recipes by the names that they shall have: ``RECIPE``, ``FORMAT:RECIPE``, a format, none."""
    ablate: Mapping[str, str] = field(factory=dict)
    """Recipes, alike, that are compared with themselves without each of their ingredients."""
    settings: Mapping[str, Mapping[str, Any]] = field(factory=dict)
    """Keys of the configuration, by the arm's name."""
    against: str | None = None
    """The arm that all others are held against, or a format, recipe, rounding, optimizer or plugin:
    then each is held against the arm that differs from it in that alone. None holds an ablated
    recipe against those without an ingredient."""
    metric: str = field(default="train", validator=_check_metric)
    """The loss that gaps are of and learning rates are chosen by: ``train`` or ``val``."""

    def to_plain(self) -> dict[str, Any]:
        """Return what is compared as plain data, for the record."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


@frozen
class Contender:
    """An arm of a comparison."""

    name: str
    """In tables, and for ``--against``: in what it differs from others, with slashes between."""
    start: Start = field(repr=False)
    rounding: str | None
    """As it was given, as all else is."""
    optimizer: str
    plugins: str
    plan: ResolvedRecipe = field(repr=False)
    key: str
    """The beginning of the names of its runs, whatever else is compared."""
    settings: Mapping[str, Any]
    keys: Mapping[str, Any] = field(factory=dict, repr=False)
    """The keys of the configuration that are its own."""

    @property
    def recipe_key(self) -> str:
        """The recipe in the names of runs."""
        return recipe_key(self.start.recipe)

    @property
    def quantized(self) -> frozenset[str]:
        """The layers that its recipe quantizes."""
        return frozenset(name for name, casts in self.plan.items() if any(casts.values()))

    @property
    def differs_in(self) -> dict[str, str | None]:
        """In what contenders may differ. The format and the recipe are the start together."""
        return {
            "start": self.start.name,
            "format": self.start.format,
            "recipe": self.start.recipe,
            "rounding": self.rounding,
            "optimizer": self.optimizer,
            "plugins": self.plugins,
        }


def contenders(
    config: TrainConfig, layers: Sequence[Layer], entrants: Entrants, configure: Configure
) -> list[Contender]:
    """Return the arms of a comparison; `BadInput` names the option at fault.

    Args:
        config: of all runs.
        layers: of the model.
        entrants: what is compared.
        configure: returns ``config`` with further plugins and keys.
    """
    asked = entrants.formats, entrants.recipes, entrants.arms, entrants.ablate
    roundings: Sequence[str | None] = entrants.roundings or [None]
    optimizers = entrants.optimizers or [config.optimizer]
    made = []
    for start, rounding, optimizer, plugins in product(
        starts(config, layers, *asked), roundings, optimizers, entrants.plugins
    ):
        varying = [(rounding, roundings), (optimizer, optimizers), (plugins, entrants.plugins)]
        name = "/".join([start.name, *(str(p) for p, values in varying if len(values) > 1)])
        settings = entrants.settings.get(name, {})
        recipe = start.made if rounding is None else rounded(config, start, rounding)
        others = None if plugins == NO_PLUGINS else plugins
        made.append(
            Contender(
                name,
                start,
                rounding,
                optimizer,
                plugins,
                plan=recipe.resolve(layers),
                key=run_key("-".join(filter(None, (start.key, rounding, optimizer, others)))),
                settings=settings,
                keys=own_keys(config, configure, optimizer, plugins, settings, name),
            )
        )
    if not made:
        raise BadInput("compare needs --formats, or recipes as --arms or --ablate")
    _check_names(made, entrants.settings)
    return made


def same_runs(contenders: Sequence[Contender]) -> list[list[str]]:
    """Return the names of contenders whose runs are the same, in groups.

    They have equal casts in all layers and equal keys; their formats have one name, too.
    """
    groups: list[list[Contender]] = []
    for own in contenders:
        known = (g for g in groups if (g[0].plan, g[0].keys) == (own.plan, own.keys))
        group = next(known, None)
        if group is None:
            groups.append(group := [])
        group.append(own)
    return [[c.name for c in group] for group in groups if len(group) > 1]


def _check_names(made: Iterable[Contender], named: Iterable[str]) -> None:
    keys: dict[str, str] = {}
    for contender in made:
        if contender.key in keys:
            raise BadInput(
                f"the runs of {contender.name} would be called {contender.key}, as those of "
                f"{keys[contender.key]} are: give it another name by --arms NAME=RECIPE"
            )
        keys[contender.key] = contender.name
    for name in named:
        if name not in keys.values():
            raise BadInput(
                f"there is no arm {name}",
                key="--set",
                meant=nearest(name, keys.values()),
                hint=f"one of {', '.join(keys.values())}",
            )
