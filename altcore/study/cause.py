"""The third stage of an explanation: counterfactual casts, of which the one that repairs is named.

Every guilty operand is asked about, the worst one in its group of layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

from attrs import frozen

from altcore.recipes import ResolvedRecipe
from altcore.study.arms import Arm, select
from altcore.study.culprit import Culprit, Suspect, as_key
from altcore.study.paired import PairedRuns
from altcore.study.statistics import plain
from altcore.study.variants import CAUSES, RANGE, STOCHASTIC, is_fixed_point, to, variants

RECOVERS = 0.5
"""Share of a gap that a counterfactual must remove to be the cause."""


@frozen
class Question:
    """A suspect alone, as it is and with other casts."""

    suspect: Suspect
    own: Arm
    changed: Mapping[str, Arm]
    """By the cause that it would show."""
    roundings: tuple[str, ...]
    """Those of its casts."""
    fixed_point: bool

    @classmethod
    def about(cls, suspect: Suspect, plan: ResolvedRecipe, prefix: str) -> Question:
        """Return the question, with the counterfactuals that make sense for the suspect."""
        operands, layers = suspect.operands, suspect.layers
        chosen = select(plan, operands, layers)
        casts = [cast for own in chosen.values() for cast in own.values()]
        possible = {cause for cast in casts for cause in variants(cast)}
        prefix = f"{prefix}-{as_key(operands[0])}-cause"
        return cls(
            suspect,
            Arm(f"{prefix}-none", chosen),
            {
                cause: Arm(f"{prefix}-{cause}", select(plan, operands, layers, to(cause)))
                for cause in CAUSES
                if cause in possible
            },
            tuple(sorted({cast.rounding for cast in casts})),
            any(is_fixed_point(cast.element) for cast in casts),
        )


def find_causes(culprit: Culprit, plan: ResolvedRecipe) -> list[dict[str, Any]]:
    """Return for each suspect what its counterfactuals take away, and the cause."""
    runs = culprit.runs
    asked = [Question.about(suspect, plan, culprit.factor) for suspect in culprit.suspects]
    own = {arm.key: question.own for question in asked for arm in question.changed.values()}
    runs.run_table(
        {arm.key: arm for q in asked for arm in (q.own, *q.changed.values())},
        lambda key, _: key not in own or _is_decided(runs, own[key].key, key),
        beside={key: [arm] for key, arm in own.items()},
    )
    return [_answer(runs, question) for question in asked]


def _answer(runs: PairedRuns, question: Question) -> dict[str, Any]:
    own = question.own.key
    rows = {cause: _recovery(runs, own, arm.key) for cause, arm in question.changed.items()}
    return {
        "operands": list(question.suspect.operands),
        "group": question.suspect.group,
        "roundings": list(question.roundings),
        "gap": runs.row(own),
        "counterfactuals": rows,
        "cause": cause_of(rows),
        "fixed_point": question.fixed_point,
    }


def _recovery(runs: PairedRuns, own: str, changed: str) -> dict[str, Any]:
    """Return how much of a gap a change takes away, and whether it repairs the suspect."""
    before, after = runs.gaps(own), runs.gaps(changed)
    gained, whole = runs.difference(before, after), fmean(before[: len(after)])
    recovered = gained.mean / whole if whole > 0 else 0.0
    return {
        **plain(gained),
        "recovered": recovered,
        "repairs": gained.low > 0 and recovered >= RECOVERS,
        "stalled": runs.stalled(changed),
    }


def _is_decided(runs: PairedRuns, own: str, changed: str) -> bool:
    """Return whether a change is known to take away more, or less, than makes it the cause."""
    left = [(1 - RECOVERS) * gap for gap in runs.gaps(own)]
    found = runs.difference(left, runs.gaps(changed))
    return not found.low <= 0 <= found.high


def cause_of(rows: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return the cause that the counterfactuals show, or None.

    A format whose values do when they are rounded stochastically is not too coarse.
    """
    is_fine = best_of(rows, [STOCHASTIC]) is not None
    return best_of(rows, [STOCHASTIC, *RANGE] if is_fine else CAUSES)


def best_of(rows: Mapping[str, Mapping[str, Any]], causes: Iterable[str]) -> str | None:
    """Return the cause whose counterfactual takes away most; None if none takes away half."""
    repairs = [cause for cause in causes if cause in rows and rows[cause]["repairs"]]
    return max(repairs, key=lambda cause: rows[cause]["recovered"]) if repairs else None
