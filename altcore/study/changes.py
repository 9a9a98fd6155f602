"""Changes that may repair a recipe, the cheapest first: rounding, scale, one layer, wider."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from attrs import evolve, field, frozen

from altcore.recipes import OF_PARAMETERS, OPERANDS, Cast, ResolvedRecipe
from altcore.study.arms import FACTORS, layer_groups, merged, operands_in, select
from altcore.study.cause import best_of
from altcore.study.variants import CAUSE_CHANGE, FORMATS, RANGE, RESCALED, STOCHASTIC, rescaled, to

MOST_CHANGES = 6
"""The largest number of changes that `changes_of` returns."""

Casts = dict[str, dict[str, Cast]]


@frozen
class Edit:
    """Another cast for some operands of a recipe, or none."""

    operands: tuple[str, ...]
    words: str | None
    """What they become; None if they are left in float32."""
    to: Callable[[Cast], Cast] | None = field(repr=False)
    group: str | None = None
    """The group of layers; None for all layers."""
    layers: tuple[str, ...] | None = None

    @property
    def text(self) -> str:
        """The edit in words."""
        where = ", ".join(self.operands) + (f" of {self.group}" if self.group else "")
        return f"{where}: {self.words}" if self.words else f"{where} left in float32"

    def of(self, plan: ResolvedRecipe, casts: Casts) -> Casts:
        """Return ``casts`` with the edited ones in their place."""
        if self.to is not None:
            return merged(casts, select(plan, self.operands, self.layers, self.to))
        chosen = casts if self.layers is None else self.layers
        return {
            layer: {o: c for o, c in own.items() if o not in self.operands or layer not in chosen}
            for layer, own in casts.items()
        }


@frozen
class Change:
    """A changed recipe."""

    text: str
    casts: Casts = field(repr=False)


def changes_of(
    plan: ResolvedRecipe,
    ties: Sequence[Sequence[str]],
    factor: str,
    causes: Sequence[Mapping[str, Any]],
) -> list[Change]:
    """Return the changes to try, the cheapest first; none twice, and none that changes nothing.

    ``causes`` are those of `find_causes`: what helped each guilty operand alone.
    """
    whole = select(plan, OPERANDS)
    seen, changes = [_given(whole)], []
    for edits in _steps(plan, ties, factor, causes):
        casts = whole
        for edit in edits:
            casts = edit.of(plan, casts)
        if _given(casts) not in seen:
            seen.append(_given(casts))
            changes.append(Change("; ".join(edit.text for edit in edits), casts))
    return changes


def _steps(
    plan: ResolvedRecipe,
    ties: Sequence[Sequence[str]],
    factor: str,
    causes: Sequence[Mapping[str, Any]],
) -> Iterator[list[Edit]]:
    """Yield the edits of each change."""
    remedies = [_remedies(cause) for cause in causes]
    yield _up_to(remedies, "rounding")
    yield _up_to(remedies, "scale")
    if causes[0]["group"]:
        first = remedies[0].get("format", _in_float32(causes[0]["operands"]))
        yield [_in_group(plan, ties, first, causes[0]["group"]), *_up_to(remedies[1:], "format")]
    yield _up_to(remedies, "format")
    yield [_in_float32([o for cause in causes for o in cause["operands"]])]
    yield [_in_float32(operands_in(plan, FACTORS[factor]))]


def _remedies(cause: Mapping[str, Any]) -> dict[str, Edit]:
    """Return the edits that an operand's counterfactuals speak for, the cheapest kind first."""
    operands, rows = tuple(cause["operands"]), cause["counterfactuals"]
    found = {}
    if best_of(rows, [STOCHASTIC]):
        found["rounding"] = Edit(operands, CAUSE_CHANGE[STOCHASTIC], to(STOCHASTIC))
    if best_of(rows, RANGE):
        found["scale"] = Edit(operands, RESCALED, rescaled)
    if best := best_of(rows, FORMATS):
        found["format"] = Edit(operands, CAUSE_CHANGE[best], to(best))
    return found


def _up_to(remedies: Sequence[Mapping[str, Edit]], kind: str) -> list[Edit]:
    """Return for each operand its dearest remedy that costs no more than one of ``kind``."""
    kinds = ("rounding", "scale", "format")
    allowed = kinds[: kinds.index(kind) + 1]
    chosen = [[own[k] for k in allowed if k in own][-1:] for own in remedies]
    return [edit for edits in chosen for edit in edits]


def _in_float32(operands: Sequence[str]) -> Edit:
    return Edit(tuple(operands), None, None)


def _in_group(plan: ResolvedRecipe, ties: Sequence[Sequence[str]], edit: Edit, group: str) -> Edit:
    """Return the edit for a group of layers alone.

    If all its operands are casts of parameters, that includes the layers that share one.
    """
    layers = layer_groups(plan, edit.operands, ties)[group]
    if set(edit.operands) <= set(OF_PARAMETERS):
        shared = {n for names in ties if set(names) & set(layers) for n in names}
        layers = [*layers, *sorted(shared - set(layers))]
    return evolve(edit, group=group, layers=tuple(layers))


def _given(casts: Casts) -> Casts:
    """Return the casts of the layers that have any."""
    return {layer: own for layer, own in casts.items() if own}
