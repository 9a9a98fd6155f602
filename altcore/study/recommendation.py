"""The last stage of an explanation: a change after which the recipe trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from altcore.study.arms import Arm
from altcore.study.changes import Change
from altcore.study.paired import PairedRuns
from altcore.study.verdict import BEYOND

FRESH_SEED = 2000
"""Added to the seed for the runs that confirm a recommendation."""


def recommend(runs: PairedRuns, control: Arm, changes: Sequence[Change]) -> dict[str, Any]:
    """Try changes in their order, on fresh seeds, until one repairs the recipe; recommend that.

    Each runs at its own best rate, since a repaired recipe may learn at another rate. Whether it
    trains may be left open by few seeds: then a dearer change is no better founded.
    """
    fresh = runs.with_seeds([s + FRESH_SEED for s in runs.seeds])
    tried = []
    for number, change in enumerate(changes):
        arm = Arm(f"change-{number}", change.casts)
        fresh.choose_rates([arm])
        fresh.run_table(
            {change.text: arm},
            lambda *_, key=arm.key: fresh.has_verdict(key, control.key),
            beside={change.text: [control]},
        )
        verdict = fresh.verdict(arm.key, control.key)
        tried.append({"change": change.text, **verdict})
        if _repairs(verdict, fresh):
            return {"candidates": tried, "recommendation": change.text}
    return {"candidates": tried, "recommendation": None}


def _repairs(verdict: Mapping[str, Any], runs: PairedRuns) -> bool:
    """Return whether a change trains, as far as its mean gap can say."""
    is_close = verdict["gap"]["mean"] <= runs.within
    has_learned = verdict["twin_learned"] == verdict["gap"]["n"]
    is_ahead = verdict["ahead_of_frozen"]["low"] > 0
    return bool(is_close and has_learned and is_ahead and verdict["verdict"] != BEYOND)
