"""The second stage of an explanation: the operand, the group of layers and the layer at fault.

Each step looks only inside the finding of the one before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import evolve, field, frozen

from altcore.recipes import ResolvedRecipe
from altcore.study.arms import FACTORS, Arm, layer_groups, operands_in, select, twin
from altcore.study.paired import PairedRuns, is_not_the_worst, worst


@frozen
class Culprit:
    """What was found to be at fault, and the runs that tell."""

    runs: PairedRuns = field(repr=False)
    """At the learning rate of the arms inside the factor."""
    factor: str
    operand: str | None
    """None if no operand alone is guilty."""
    operands: tuple[str, ...]
    """The operand at fault, or all of the factor."""
    layers: tuple[str, ...] | None
    """Those of the group at fault; None for all."""


def find_culprit(
    runs: PairedRuns,
    plan: ResolvedRecipe,
    ties: Sequence[Sequence[str]],
    arms: Mapping[frozenset[str], Arm],
    shares: Mapping[str, Mapping[str, Any]],
) -> tuple[Culprit, dict[str, Any]]:
    """Return what is at fault inside the factor with the largest share, and the tables of it."""
    factor = max(shares, key=lambda f: shares[f]["mean"])
    inside = runs_inside(runs, arms[frozenset(factor)])
    found: dict[str, Any] = {
        "factor": factor,
        "factor_distinguishable": shares[factor]["low"] > 0,
        "learning_rate_factor_inside": inside.rate,
    }

    def table(stage: str, tried: Mapping[str, Arm], *, all_guilty: bool = False) -> str | None:
        found[stage] = inside.run_table(tried, None if all_guilty else is_not_the_worst)
        return worst(found[stage])

    operands = operands_in(plan, FACTORS[factor])
    alone = {o: Arm(f"{factor}-{as_key(o)}", select(plan, [o])) for o in operands}
    operand = table("operands", alone, all_guilty=True)
    wanted = [operand] if operand else operands

    groups = layer_groups(plan, wanted, ties)
    prefix = f"{factor}-{as_key(operand or 'all')}"
    blocks = {
        n: Arm(f"{prefix}-{as_key(n)}", select(plan, wanted, names)) for n, names in groups.items()
    }
    group = table("groups", blocks) if len(blocks) > 1 else next(iter(blocks), None)

    layers = groups.get(group or "", [])
    prefix = f"{factor}-{as_key(wanted[0])}-only"
    each = {n: Arm(f"{prefix}-{as_key(n)}", select(plan, wanted, [n])) for n in layers}
    layer = table("layers", each) if len(each) > 1 else next(iter(each), None)

    found |= {"operand": operand, "group": group, "layer": layer}
    return Culprit(inside, factor, operand, tuple(wanted), tuple(layers) or None), found


def runs_inside(runs: PairedRuns, arm: Arm) -> PairedRuns:
    """Return the runs with the learning rate of the arms inside a factor, and its twin.

    Both run at the factor's own rate. At another, the cost of the rate would count against
    every operand and layer, the innocent ones too. If the factor is not distinguishable from
    the twin there, its harm is that it forces another rate. Both then run at the twin's rate.
    """
    own, twins = runs.rates[arm.key], runs.rates["twin"]
    if own == twins:
        return runs.at(own, twin())
    inside = runs.at(own, evolve(twin(), key="twin-inside"))
    inside.run([arm], count=len(runs.of(arm.key)))
    row = inside.row(arm.key)
    is_worse = row["diverged"] or row["low"] > 0
    return inside if is_worse else runs.at(twins, twin())


def as_key(name: str) -> str:
    """Return a name of an operand or layer as a part of an arm's key."""
    return "".join(c if c.isalnum() else "_" for c in name)
