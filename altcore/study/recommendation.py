"""The last stage of an explanation: a change after which the recipe trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from altcore.study.arms import Arm
from altcore.study.changes import Change
from altcore.study.paired import PairedRuns

FRESH_SEED = 2000
"""Added to the seed for the runs that confirm a recommendation."""


def recommend(runs: PairedRuns, control: Arm, changes: Sequence[Change]) -> dict[str, Any]:
    """Try changes in their order, on fresh seeds, until one trains.

    Each runs at its own best rate, since a repaired recipe may learn at another rate.
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
        if verdict["trains"]:
            break
    chosen = tried[-1]["change"] if tried and tried[-1]["trains"] else None
    return {"candidates": tried, "recommendation": chosen}
