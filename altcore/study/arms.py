"""Arms: parts of a recipe, by operands and layers, as recipes of their own.

A study's full recipe is resolved for the model into casts of every operand of every layer. An arm
keeps some of these casts, or replaces them, and leaves the rest of the run in float32.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from attrs import evolve, field, frozen

from altcore.formats import float_format
from altcore.recipes import (
    ATTENTION_OPERANDS,
    LOOKUP,
    OF_PARAMETERS,
    PRODUCTS,
    STORED,
    Cast,
    ResolvedRecipe,
    Scaling,
)
from altcore.study.statistics import subsets

FACTORS: dict[str, tuple[str, ...]] = {
    "F": ("weight@fwd", "activation@fwd", LOOKUP, *ATTENTION_OPERANDS),
    "B": (
        "gradient@dgrad",
        "weight@dgrad",
        "gradient@wgrad",
        "activation@wgrad",
        "weight_gradient",
    ),
    "U": STORED,
}
"""The operands of each factor. Every operand that a recipe can cast is in one of them."""

WIDE = Cast(float_format("E8M10", 8, 10), Scaling("none"))
"""The cast of an operand that takes part in another's Hadamard transform but is not under test.
Its rounding is too fine to matter."""


@frozen
class Arm:
    """One way to train: casts by layer and operand, and layers that keep their weights."""

    key: str
    """Names its runs: letters, digits, dash and underscore."""
    casts: Mapping[str, Mapping[str, Cast]] = field(repr=False)
    freeze: tuple[str, ...] = ()
    keys: Mapping[str, Any] = field(factory=dict, repr=False)
    """Other keys of the configuration that are the arm's own."""

    def recipe(self) -> dict[str, Any]:
        """Return the arm's recipe in its plain form, with formats as objects."""
        return {
            "layers": {
                layer: {
                    o: {**c.to_plain(), "format": c.format} for o, c in with_partners(casts).items()
                }
                for layer, casts in self.casts.items()
                if casts
            }
        }


def with_partners(casts: Mapping[str, Cast]) -> dict[str, Cast]:
    """Return a layer's casts, with `WIDE` ones for partners that are not transformed themselves."""
    made = dict(casts)
    for pair in PRODUCTS:
        for one, other in (pair, pair[::-1]):
            if one in casts and casts[one].hadamard and other not in casts:
                made[other] = evolve(WIDE, hadamard=casts[one].hadamard)
    return made


def select(
    plan: ResolvedRecipe,
    operands: Iterable[str],
    layers: Iterable[str] | None = None,
    change: Callable[[Cast], Cast] = lambda cast: cast,
) -> dict[str, dict[str, Cast]]:
    """Return the plan's casts for some operands of some layers (None: all), changed."""
    wanted, named = set(operands), None if layers is None else set(layers)
    return {
        layer: {o: change(c) for o, c in casts.items() if c is not None and o in wanted}
        for layer, casts in plan.items()
        if named is None or layer in named
    }


def merged(
    first: Mapping[str, Mapping[str, Cast]], second: Mapping[str, Mapping[str, Cast]]
) -> dict[str, dict[str, Cast]]:
    """Return the first's casts, replaced by the second's where it has some."""
    layers = {**first, **second}
    return {name: {**first.get(name, {}), **second.get(name, {})} for name in layers}


def factors_in(plan: ResolvedRecipe) -> tuple[str, ...]:
    """Return the factors of which the plan has an operand."""
    return tuple(f for f, operands in FACTORS.items() if operands_in(plan, operands))


def factorial(plan: ResolvedRecipe) -> dict[frozenset[str], Arm]:
    """Return the arms of F, B and U, eight if the plan has all; the empty one is the twin."""
    arms = {}
    for factors in subsets(factors_in(plan)):
        key = "".join(f for f in FACTORS if f in factors) or "twin"
        operands = [o for f in factors for o in FACTORS[f]]
        arms[factors] = Arm(key, select(plan, operands))
    return arms


def twin() -> Arm:
    """Return the float32 arm with the same seed and batches."""
    return Arm("twin", {})


def frozen_control(plan: ResolvedRecipe) -> Arm:
    """Return a float32 arm in which the layers that the plan quantizes keep their first weights."""
    layers = tuple(name for name, casts in plan.items() if any(casts.values()))
    return Arm("frozen", {}, freeze=layers)


def operands_in(plan: ResolvedRecipe, operands: Iterable[str]) -> list[str]:
    """Return the operands for which any layer has a cast."""
    return [o for o in operands if any(casts.get(o) for casts in plan.values())]


def layer_groups(
    plan: ResolvedRecipe, operands: Iterable[str], ties: Iterable[Sequence[str]] = ()
) -> dict[str, list[str]]:
    """Return the layers that have a cast for one of the operands, by block.

    A block is named by a layer's name up to and including its first number. A layer without a
    number is a group by itself. ``ties`` are sets of layers that share a parameter. If only casts
    of the parameter itself are under test, the first of them with a cast stands for all.
    """
    wanted = list(operands)
    given = [name for name, casts in plan.items() if any(casts.get(o) for o in wanted)]
    same: set[str] = set()
    if set(wanted) <= set(OF_PARAMETERS):
        for names in ties:
            same.update([n for n in names if n in given][1:])
    groups: dict[str, list[str]] = {}
    for name in given:
        if name not in same:
            block = re.match(r"(.*?\.)?\d+(?=\.)", name)
            groups.setdefault(block[0] if block else name, []).append(name)
    return groups
