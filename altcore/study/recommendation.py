"""The last stage of an explanation: a change after which the recipe trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from altcore.recipes import OPERANDS, Cast, ResolvedRecipe
from altcore.study.arms import FACTORS, OWN, Arm, layer_groups, merged, select
from altcore.study.paired import PairedRuns
from altcore.study.variants import CAUSE_CHANGE, to

FRESH_SEED = 2000
"""Added to the seed for the runs that confirm a recommendation."""
MOST_CHANGES = 4

Casts = dict[str, dict[str, Cast]]


def recommend(runs: PairedRuns, control: Arm, changes: Sequence[tuple[str, Casts]]) -> Any:
    """Try changes in their order, on fresh seeds, until one trains.

    Each runs at its own best rate, since a repaired recipe may learn at another rate.
    """
    fresh = runs.with_seeds([s + FRESH_SEED for s in runs.seeds])
    tried = []
    for number, (text, casts) in enumerate(changes):
        arm = Arm(f"change-{number}", casts)
        fresh.choose_rates([arm])
        fresh.run_table(
            {text: arm},
            lambda *_, key=arm.key: fresh.has_verdict(key, control.key),
            beside={text: [control]},
        )
        verdict = fresh.verdict(arm.key, control.key)
        tried.append({"change": text, **verdict})
        if verdict["trains"]:
            break
    chosen = tried[-1]["change"] if tried and tried[-1]["trains"] else None
    return {"candidates": tried, "recommendation": chosen}


def changes_of(
    plan: ResolvedRecipe, ties: Sequence[Sequence[str]], found: Mapping[str, Any]
) -> list[tuple[str, Casts]]:
    """Return changes of the full recipe, from the narrowest on."""
    operand, cause = found.get("operand"), found.get("cause")
    factor = found["factor"]
    layers = layer_groups(plan, [operand] if operand else FACTORS[factor], ties)
    group = layers.get(found.get("group") or "")
    everything = select(plan, OPERANDS)
    made = []
    if operand and cause:
        change = to(cause)
        if group:
            narrow = select(plan, [operand], with_tied(operand, group, ties), change)
            made.append((f"{operand} of {found['group']}: {CAUSE_CHANGE[cause]}", narrow))
        made.append((f"{operand}: {CAUSE_CHANGE[cause]}", select(plan, [operand], None, change)))
    changed = [(text, merged(everything, casts)) for text, casts in made]
    if operand:
        rest = [o for o in OPERANDS if o != operand]
        changed.append((f"{operand} left in float32", select(plan, rest)))
    rest = [o for o in OPERANDS if o not in FACTORS[factor]]
    changed.append((f"{', '.join(FACTORS[factor])} left in float32", select(plan, rest)))
    return changed


def with_tied(operand: str, layers: Sequence[str], ties: Sequence[Sequence[str]]) -> Sequence[str]:
    """Return the layers; for casts of a parameter itself, with the layers that share it."""
    if operand not in OWN:
        return layers
    shared = {n for names in ties if set(names) & set(layers) for n in names}
    return [*layers, *sorted(shared - set(layers))]
