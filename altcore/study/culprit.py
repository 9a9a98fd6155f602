"""The second stage of an explanation: the operands, the group of layers and the layer at fault.

Each step looks only inside the finding of the one before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import evolve, field, frozen

from altcore.recipes import ResolvedRecipe
from altcore.study.arms import FACTORS, Arm, layer_groups, operands_in, select, twin
from altcore.study.paired import PairedRuns, Rows, guilty, is_not_the_worst


@frozen
class Suspect:
    """Operands whose cause is asked about together."""

    operands: tuple[str, ...]
    """One that is guilty, or all of the factor if none is guilty alone."""
    group: str | None = None
    """The group of layers at fault, if one was found."""
    layers: tuple[str, ...] | None = None
    """Those of the group; None for all."""


@frozen
class Culprit:
    """What was found to be at fault, and the runs that tell."""

    runs: PairedRuns = field(repr=False)
    """At the learning rate of the arms inside the factor."""
    factor: str
    suspects: tuple[Suspect, ...]
    """The worst first; only its layers were looked into."""


def find_culprit(
    runs: PairedRuns,
    plan: ResolvedRecipe,
    ties: Sequence[Sequence[str]],
    arms: Mapping[frozenset[str], Arm],
    shares: Mapping[str, Mapping[str, Any]],
) -> tuple[Culprit, dict[str, Any]]:
    """Return what is at fault inside the factor with the largest share, and the tables of it."""
    factor = max(shares, key=lambda f: shares[f]["mean"])
    inside, own_rate = runs_inside(runs, arms[frozenset(factor)])
    tables: dict[str, Any] = {}

    def guilty_of(
        stage: str,
        prefix: str,
        parts: Mapping[str, Sequence[Any]],
        is_settled: Callable[[str, Rows], bool] | None = None,
    ) -> list[str]:
        tried = {n: Arm(f"{prefix}-{as_key(n)}", select(plan, *part)) for n, part in parts.items()}
        tables[stage] = inside.run_table(tried, is_settled)
        return guilty(tables[stage])

    def worst_of(stage: str, prefix: str, parts: Mapping[str, Sequence[Any]]) -> str | None:
        """Return the worst part; one that is alone is not run again."""
        if len(parts) < 2:
            return next(iter(parts), None)
        return next(iter(guilty_of(stage, prefix, parts, is_not_the_worst)), None)

    operands = operands_in(plan, FACTORS[factor])
    at_fault = guilty_of("operands", factor, {o: ([o],) for o in operands})
    wanted = at_fault[:1] or operands
    name = f"{factor}-{as_key(wanted[0] if at_fault else 'all')}"

    groups = layer_groups(plan, wanted, ties)
    group = worst_of("groups", name, {n: (wanted, layers) for n, layers in groups.items()})
    layers = groups[group] if group else []
    layer = worst_of("layers", f"{name}-only", {n: (wanted, [n]) for n in layers})

    first = Suspect(tuple(wanted), group, tuple(layers) or None)
    others = [Suspect((operand,)) for operand in at_fault[1:]]
    return Culprit(inside, factor, (first, *others)), {
        "factor": factor,
        "factor_distinguishable": shares[factor]["low"] > 0,
        "learning_rate_factor_inside": inside.rate,
        **({"factor_at_own_rate": own_rate} if own_rate else {}),
        **tables,
        "operand": next(iter(at_fault), None),
        "group": group,
        "layer": layer,
    }


def runs_inside(runs: PairedRuns, arm: Arm) -> tuple[PairedRuns, dict[str, Any] | None]:
    """Return the runs with the learning rate of the arms inside a factor, and its twin.

    The row by which that rate was chosen comes with them, None if there was no choice.

    Both run at the factor's own rate. At another, the cost of the rate would count against
    every operand and layer, the innocent ones too. If the factor is not distinguishable from
    the twin there, or that diverges, its harm is that it forces another rate. Both then run at the
    twin's rate.
    """
    own, twins = runs.rates[arm.key], runs.rates["twin"]
    if own == twins:
        return runs.at(own, twin()), None
    inside = runs.at(own, evolve(twin(), key="twin-inside"))
    inside.run([arm], count=len(runs.of(arm.key)))
    row = inside.row(arm.key)
    is_worse = not math.isnan(row["mean"]) and (row["diverged"] or row["low"] > 0)
    return (inside if is_worse else runs.at(twins, twin())), row


def as_key(name: str) -> str:
    """Return a name of an operand or layer as a part of an arm's key."""
    return "".join(c if c.isalnum() else "_" for c in name)
