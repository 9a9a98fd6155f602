"""The third stage of an explanation: counterfactual formats, of which the cause is the repair."""

from __future__ import annotations

import math
from typing import Any

from altcore.recipes import ResolvedRecipe
from altcore.study.arms import Arm, select
from altcore.study.culprit import Culprit
from altcore.study.statistics import estimate, plain
from altcore.study.variants import CAUSES, is_fixed_point, to, variants

RECOVERS = 0.5
"""Share of a gap that a counterfactual format must remove to be the cause."""


def find_cause(culprit: Culprit, plan: ResolvedRecipe) -> dict[str, Any]:
    """Try counterfactual formats for what is at fault; return what each of them takes away."""
    runs, operands, layers = culprit.runs, culprit.operands, culprit.layers
    chosen = select(plan, operands, layers)
    casts = [c for own in chosen.values() for c in own.values()]
    possible = {cause for c in casts for cause in variants(c)}
    base = Arm(f"{culprit.factor}-cause-none", chosen)
    tried = {
        cause: Arm(f"{culprit.factor}-cause-{cause}", select(plan, operands, layers, to(cause)))
        for cause in CAUSES
        if cause in possible
    }
    runs.run([base, *tried.values()])
    before, rows = runs.gaps(base.key), {}
    whole = math.fsum(before) / len(before)
    for cause, arm in tried.items():
        gained = estimate([b - a for b, a in zip(before, runs.gaps(arm.key), strict=True)])
        rows[cause] = {**plain(gained), "recovered": gained.mean / whole if whole > 0 else 0.0}
    names = {c: r for c, r in rows.items() if r["low"] > 0 and r["recovered"] >= RECOVERS}
    return {
        "counterfactuals": rows,
        "cause": max(names, key=lambda c: names[c]["recovered"]) if names else None,
        "fixed_point": any(is_fixed_point(c.element) for c in casts),
    }
