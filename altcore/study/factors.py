"""The first stage of an explanation: what each factor of a recipe costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from altcore.study.arms import FACTORS, Arm
from altcore.study.paired import PairedRuns, Rows
from altcore.study.statistics import dividends, plain, shapley

Gaps = Mapping[frozenset[str], list[float]]


def judge_factors(
    runs: PairedRuns,
    arms: Mapping[frozenset[str], Arm],
    control: Arm,
    watch: Mapping[str, Any],
    null: Arm | None = None,
) -> dict[str, Any]:
    """Return the gap of each arm, effects and shares of the factors, and the full arm's verdict.

    ``watch`` are further keys of the full arm's runs. The ``null`` arm runs as far as that one.
    """
    full = arms[max(arms, key=len)].key

    def is_settled(name: str, rows: Rows) -> bool:
        # Whether the full arm is guilty decides what is looked for next.
        is_placed = rows[name]["guilty"] or rows[name]["high"] <= runs.within
        return is_placed and (name != full or runs.has_verdict(full, control.key))

    rows = runs.run_table(
        {arm.key: arm for factors, arm in arms.items() if factors},
        is_settled,
        beside={full: [control] if null is None else [control, null]},
        keys={full: watch},
        first=full,
    )
    found = {}
    if null is not None:
        found = {"null": runs.judge_null(null.key, rows=1)}
    gaps = {s: runs.gaps(arm.key) if s else [0.0] * len(runs.seeds) for s, arm in arms.items()}
    shares = [shapley(one) for one in _by_seed(gaps)]
    return {
        "arms": rows,
        "frozen": runs.row(control.key),
        "effects": {_name(s): plain(runs.estimate(_effect(s, gaps))) for s in gaps if s},
        "shapley": {f: plain(runs.estimate([one[f] for one in shares])) for f in shares[0]},
        **found,
        "full": {**rows[full], **runs.verdict(full, control.key, rows[full]["p_holm"])},
    }


def _effect(factors: frozenset[str], gaps: Gaps) -> list[float]:
    """Return what factors add beyond their subsets, for each seed that all of these have."""
    inside = {s: found for s, found in gaps.items() if s <= factors}
    return [dividends(one)[factors] for one in _by_seed(inside)]


def _by_seed(gaps: Gaps) -> list[dict[frozenset[str], float]]:
    """Return the gaps of every arm, for each seed that all arms have."""
    count = min(map(len, gaps.values()))
    return [{s: found[i] for s, found in gaps.items()} for i in range(count)]


def _name(factors: frozenset[str]) -> str:
    return "×".join(f for f in FACTORS if f in factors)
