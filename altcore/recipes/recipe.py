"""A recipe: rules that say which cast each operand of each layer has.

A `Recipe` is written with patterns. `Recipe.resolve` makes it a `ResolvedRecipe`: one `Cast`, or
None, for every operand of every layer of one model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from attrs import evolve, field, frozen

from altcore.errors import BadInput, Source, nearest
from altcore.formats import AnyFormat
from altcore.recipes.cast import Cast
from altcore.recipes.layers import Layer, is_selector, matching, some, takes_hadamard
from altcore.recipes.operands import OPERANDS

Casts: TypeAlias = Mapping[str, Cast | None]
"""Operand -> its cast, None if it is left alone."""
ResolvedRecipe: TypeAlias = Mapping[str, Casts]
"""Layer name -> operand -> its cast, None if it is left alone."""


@frozen
class LayerRule:
    """Casts for the layers that a pattern matches."""

    pattern: str
    casts: Casts
    source: Source | None = field(default=None, eq=False, repr=False)
    sources: Mapping[str, Source | None] = field(factory=dict, eq=False, repr=False)
    """Where the cast of each operand was given."""


@frozen
class Recipe:
    """Rules, the last match winning. The first rules are the defaults of the recipe's top level."""

    name: str
    rules: tuple[LayerRule, ...]
    source: Source | None = field(default=None, eq=False, repr=False)
    """The file that the recipe was read from."""
    is_named: bool = False
    """Whether it is one of altcore's own, for any model: what no layer has is left out."""

    def resolve(self, layers: Sequence[Layer]) -> dict[str, dict[str, Cast | None]]:
        """Return the casts of a model's layers.

        Raises:
            BadInput: for a pattern that matches no layer, which is always a typo, and for a rule
                that none of its layers can follow.
        """
        resolved: dict[str, dict[str, Cast | None]] = {
            layer.name: dict.fromkeys(OPERANDS) for layer in layers
        }
        for rule in self.rules:
            hits = matching(layers, rule.pattern)
            if not hits and not is_selector(rule.pattern):
                names = [layer.name for layer in layers]
                raise self.refusal(
                    f"pattern {rule.pattern!r} matches no layer",
                    meant=nearest(rule.pattern, names),
                    hint=f"layers are {some(names)}",
                    source=rule.source,
                )
            if not self.is_named:
                self._check_reach(rule, hits)
            for layer in hits:
                taken = {o: c for o, c in rule.casts.items() if layer.takes(o)}
                resolved[layer.name].update(
                    _fitting(layer, taken) if is_selector(rule.pattern) else taken
                )
        return resolved

    def source_of(self, operand: str, cast: Cast | None) -> Source | None:
        """Return where an operand's cast was given, None if that is unknown."""
        for rule in reversed(self.rules):
            if cast is not None and rule.casts.get(operand) is cast:
                return rule.sources.get(operand) or rule.source
        return None

    def refusal(
        self, problem: str, *, meant: str = "", hint: str = "", source: Source | None = None
    ) -> BadInput:
        """Return the error of a recipe that a model cannot follow."""
        return BadInput(
            problem,
            key="recipe",
            part=self.name,
            meant=meant,
            hint=hint,
            source=source or self.source,
        )

    def _check_reach(self, rule: LayerRule, hits: Sequence[Layer]) -> None:
        """Refuse a rule with a cast that none of the layers it matches can have.

        One operand of a role is enough: embeddings have weight@lookup alone.
        """
        taken = {
            (o.partition("@")[0], id(c))
            for o, c in rule.casts.items()
            if any(layer.takes(o) for layer in hits)
        }
        for operand, cast in rule.casts.items():
            role = operand.partition("@")[0]
            if cast is not None and hits and (role, id(cast)) not in taken:
                raise self.refusal(
                    f"pattern {rule.pattern!r} says {operand}, which none of its layers has",
                    hint=some([layer.name for layer in hits]),
                    source=rule.source,
                )


def _fitting(layer: Layer, casts: Mapping[str, Cast | None]) -> dict[str, Cast | None]:
    """Leave a rule's Hadamard transforms out for a layer that can have none."""
    return {
        o: evolve(c, hadamard=0) if c and c.hadamard and not takes_hadamard(layer.kind, o) else c
        for o, c in casts.items()
    }


def formats_in(resolved: ResolvedRecipe) -> list[AnyFormat]:
    """Return the formats of a resolved recipe's casts, each once."""
    return list(dict.fromkeys(c.format for casts in resolved.values() for c in casts.values() if c))


def resolved_to_plain(resolved: ResolvedRecipe) -> dict[str, dict[str, Any]]:
    """Return a resolved recipe as plain data, for checkpoints and records."""
    return {
        name: {o: c.to_plain() for o, c in casts.items() if c is not None}
        for name, casts in resolved.items()
    }
