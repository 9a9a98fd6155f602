"""Whether a run learned, and the one line that says how it went.

A run learned if its last validation loss is at least 5 % below the unigram entropy of the data.
Where the workload states none, the loss must be below that of the first evaluation, which is made
before the first step, by more than two standard errors over the evaluations' batches. An error may
end a run long after its last evaluation: what the training loss rose by since is added.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

MARGIN = 0.05
"""Share of the unigram entropy by which a run that learned is below it; and, of an evaluation of
one batch, which has no standard error, of the loss at the start."""


def has_learned(
    last: Mapping[str, Any],
    first: Mapping[str, Any],
    *,
    entropy: float | None,
    rise: float = 0.0,
) -> bool | None:
    """Return whether a run learned; None if it was never evaluated.

    Args:
        last: the last evaluation: ``val_loss``, and ``val_loss_error``, its standard error.
        first: the first one.
        entropy: the unigram entropy of the data, in the unit of the loss.
        rise: of the training loss since the last evaluation.
    """
    if "val_loss" not in last:
        return None
    loss = last["val_loss"] + max(rise, 0.0)
    if not math.isfinite(loss):
        return False
    if entropy is not None:
        return bool(loss <= (1 - MARGIN) * entropy)
    start = first["val_loss"]
    if not math.isfinite(start):
        return True  # The loss became finite.
    errors = [e.get("val_loss_error") for e in (first, last)]
    known = [e for e in errors if e is not None and math.isfinite(e)]
    error = 2 * math.hypot(*known) if known else MARGIN * abs(start)
    return bool(loss < start - error)


def verdict_of(
    *,
    learned: bool | None,
    status: str,
    steps: int,
    judged_at: int | None = None,
    discarded: int = 0,
    is_improving: bool = False,
    collapses: Sequence[Mapping[str, Any]] = (),
    stopped_by: str | None = None,
    changes: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Return the line.

    ``judged_at`` is the step of the evaluation that ``learned`` rests on, if that is not the last.

    >>> verdict_of(learned=True, status="finished", steps=300, is_improving=True)
    'learned, still improving at the end'
    >>> verdict_of(learned=False, status="finished", steps=300, collapses=[{"step": 120}])
    'did not learn; collapsed at step 120, went on'
    >>> verdict_of(learned=False, status="finished", steps=300, discarded=200)
    'did not learn: 200 of 300 steps discarded'
    >>> verdict_of(learned=True, status="failed", steps=140, judged_at=100)
    'learned by step 100; failed at step 140'
    >>> change = {"what": "learning_rate", "step": 50}
    >>> verdict_of(learned=True, status="finished", steps=300, changes=[change])
    'learned; learning_rate changed after step 50'
    """
    parts = []
    if 2 * discarded > steps:
        parts.append(f"did not learn: {discarded} of {steps} steps discarded")
    elif learned is not None:
        parts.append("learned" if learned else "did not learn")
        parts[0] += f" by step {judged_at}" if judged_at not in (None, steps) else ""
        parts[0] += ", still improving at the end" if is_improving else ""
    if collapses:
        went_on = "" if status == "collapsed" else ", went on"
        parts.append(f"collapsed at step {collapses[0]['step']}{went_on}")
    if stopped_by:
        parts.append(f"stopped by {stopped_by} at step {steps}")
    elif status in ("interrupted", "failed"):
        parts.append(f"{status} at step {steps}")
    parts = parts or ["not known: nothing was evaluated"]
    parts += [f"{change['what']} changed after step {change['step']}" for change in changes]
    return "; ".join(parts)
