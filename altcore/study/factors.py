"""The first stage of an explanation: what each factor of a recipe costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from altcore.study.arms import FACTORS, Arm
from altcore.study.paired import PairedRuns, by_seed
from altcore.study.statistics import dividends, shapley


def judge_factors(
    runs: PairedRuns, arms: Mapping[frozenset[str], Arm], control: Arm
) -> dict[str, Any]:
    """Return the gap of each arm, effects and shares of the factors, and the full arm's verdict."""
    rows = runs.table({arm.key: arm for factors, arm in arms.items() if factors})
    gaps = {s: runs.gaps(arm.key) if s else [0.0] * len(runs.seeds) for s, arm in arms.items()}
    each = [{s: found[i] for s, found in gaps.items()} for i in range(len(runs.seeds))]
    full = arms[max(arms, key=len)].key
    return {
        "arms": rows,
        "frozen": runs.row(control.key),
        "effects": by_seed({_name(s): v for s, v in dividends(g).items()} for g in each),
        "shapley": by_seed(shapley(g) for g in each),
        "full": {**rows[full], **runs.verdict(full, control.key)},
    }


def _name(factors: frozenset[str]) -> str:
    return "×".join(f for f in FACTORS if f in factors)
