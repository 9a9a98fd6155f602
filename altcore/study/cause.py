"""The third stage of an explanation: counterfactual formats, of which the cause is the repair."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from altcore.recipes import ResolvedRecipe
from altcore.study.arms import Arm, select
from altcore.study.culprit import Culprit
from altcore.study.paired import PairedRuns
from altcore.study.statistics import plain
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
    runs.run_table(
        tried,
        lambda cause, _: _is_decided(runs, base.key, tried[cause].key),
        beside={cause: [base] for cause in tried},
    )
    rows = {cause: _recovery(runs, base.key, arm.key) for cause, arm in tried.items()}
    names = {c: r for c, r in rows.items() if r["low"] > 0 and r["recovered"] >= RECOVERS}
    return {
        "counterfactuals": rows,
        "cause": max(names, key=lambda c: names[c]["recovered"]) if names else None,
        "fixed_point": any(is_fixed_point(c.element) for c in casts),
    }


def _recovery(runs: PairedRuns, own: str, changed: str) -> dict[str, Any]:
    """Return how much of a gap a change takes away."""
    before, after = runs.gaps(own), runs.gaps(changed)
    gained, whole = runs.difference(before, after), fmean(before[: len(after)])
    return {**plain(gained), "recovered": gained.mean / whole if whole > 0 else 0.0}


def _is_decided(runs: PairedRuns, own: str, changed: str) -> bool:
    """Return whether a change is known to take away more, or less, than makes it the cause."""
    left = [(1 - RECOVERS) * gap for gap in runs.gaps(own)]
    found = runs.difference(left, runs.gaps(changed))
    return not found.low <= 0 <= found.high
