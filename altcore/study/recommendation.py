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


CLOSES = 0.9
"""Share of the recipe's gap that a recommended change closes, unless what is left is small."""


def recommend(
    runs: PairedRuns, control: Arm, changes: Sequence[Change], whole: float
) -> dict[str, Any]:
    """Try changes in their order, on fresh seeds; recommend the first that closes the gap.

    Each runs at its own best rate, since a repaired recipe may learn at another rate. Dearer
    changes are tried only if what is left is known to be too much: few seeds may leave that open.

    Args:
        runs: of the recipe.
        control: the frozen control.
        changes: the cheapest first.
        whole: the recipe's gap.
    """
    fresh = runs.with_seeds([s + FRESH_SEED for s in runs.seeds])
    tried: list[dict[str, Any]] = []
    chosen = None
    for number, change in enumerate(changes):
        arm = Arm(f"change-{number}", change.casts)
        fresh.choose_rates([arm])
        fresh.run_table(
            {change.text: arm},
            lambda *_, key=arm.key: fresh.has_verdict(key, control.key),
            beside={change.text: [control]},
        )
        verdict = fresh.verdict(arm.key, control.key)
        closed = 1 - verdict["gap"]["mean"] / whole
        tried.append({"change": change.text, "closed": closed, **verdict})
        if _repairs(tried[-1], runs.within):
            chosen = chosen or change.text
            if verdict["verdict"] != BEYOND:
                break
    return {"candidates": tried, "recommendation": chosen}


def _repairs(found: Mapping[str, Any], within: float) -> bool:
    """Return whether a change learns as its twin does, and closes most of the gap."""
    is_close = found["gap"]["mean"] <= within or found["closed"] >= CLOSES
    have_learned = found["learned"] == found["twin_learned"] == found["gap"]["n"]
    return bool(is_close and have_learned and found["ahead_of_frozen"]["low"] > 0)
