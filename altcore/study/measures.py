"""What the runs of an arm say besides their training loss: validation, and rates of rounding."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from altcore.runs import AFTER_PLUGINS
from altcore.study.outcome import Outcome, gap

METRICS = ("train", "val")
"""The losses by which arms can be compared."""
VAL_STEPS = 64
"""Batches of an evaluation that arms are compared by, unless the user gives another number."""
NORMAL = 1.96
"""Standard errors on each side of an interval of 95 %."""

RATES = ("overflow_rate", "flushed_rate", "stored_stall_rate", "view_stall_rate")
"""Rates of the metrics, as lines of metrics.jsonl have them."""
BY_PLUGINS, CLIPPED = "gradient_clipped_by_plugins", "gradient_clipped"
"""The shares of the gradient's norm that plugins took away, and of what these left `grad_clip`."""


def loss_of(metric: str, steps: int) -> Callable[[Outcome], float]:
    """Return the function that takes a run's outcome to the loss of a metric."""
    return outcome_loss if metric == "val" else lambda outcome: outcome.tail(steps)


def gap_of(metric: str, steps: int) -> Callable[[Outcome, Outcome], float]:
    """Return the function that takes a run and its reference to their gap in a metric."""
    return val_gap if metric == "val" else lambda outcome, other: gap(outcome, other, steps)


def val_gap(outcome: Outcome, reference: Outcome) -> float:
    """Return the difference of the validation losses of two runs of a seed, on the same batches.

    A diverged run counts as in `gap`. NaN if the reference has no such loss.
    """
    base = outcome_loss(reference)
    if not math.isfinite(base):
        return math.nan
    if outcome.diverged:
        entropy = outcome.entropy
        return (entropy if entropy is not None and entropy > base else reference.losses[0]) - base
    return outcome_loss(outcome) - base


def outcome_loss(outcome: Outcome) -> float:
    """Return a run's last validation loss, infinity if it diverged."""
    loss = outcome.evaluation.get("val_loss")
    return math.inf if outcome.diverged or loss is None else float(loss)


def bits_per_byte(outcome: Outcome) -> float | None:
    """Return a run's validation loss in bits for each byte of text, None for other data."""
    tokens, size = (outcome.facts.get(key) for key in ("val_tokens", "val_bytes"))
    return outcome_loss(outcome) / math.log(2) * tokens / size if tokens and size else None


def validation(outcomes: Sequence[Outcome], batches: int, within: float) -> dict[str, Any]:
    """Return how certain the validation losses of some runs are.

    Returns:
        ``batches`` and ``items`` of an evaluation. ``error``: the largest standard error of a loss
        over its batches, 0 if they are the whole split, None if a single one cannot tell.
        ``enough``: so many batches that the interval of 95 % of a loss reaches no farther than
        ``within``, even without a twin on the same ones; None if that cannot be told.
    """
    found = [o.evaluation for o in outcomes if o.evaluation and not o.diverged]
    errors = [e["val_loss_error"] for e in found if e.get("val_loss_error") is not None]
    error, count = max(errors, default=None), batches
    if found and all(e.get("val_is_whole") for e in found):
        error = 0.0
    if error and within:
        count = max(1, math.ceil(batches * (NORMAL * error / within) ** 2))
    return {
        "batches": batches,
        "items": max((e["val_items"] for e in found), default=0),
        "error": error,
        "enough": None if error is None or (error and not within) else count,
    }


def rates(outcomes: Mapping[int, Outcome], grad_clip: float) -> dict[str, Any]:
    """Return the rates of an arm: their means over steps and seeds, the largest, and when it was.

    Args:
        outcomes: by seed.
        grad_clip: the largest gradient norm, 0 if it is not clipped.

    Returns:
        By name ``{mean, largest, step, seed}``; None for a rate that was never measured, as that of
        overflow where nothing can.
    """
    found: dict[str, Any] = {}
    for name in (*RATES, BY_PLUGINS, CLIPPED):
        values = [
            (value, int(line["step"]), seed)
            for seed, outcome in outcomes.items()
            for line, value in _values(outcome, name, grad_clip)
        ]
        found[name] = None
        if values:
            largest, step, seed = max(values, key=lambda entry: (entry[0], -entry[1]))
            mean = math.fsum(value for value, *_ in values) / len(values)
            found[name] = {"mean": mean, "largest": largest, "step": step, "seed": seed}
    return found


def _values(
    outcome: Outcome, name: str, grad_clip: float
) -> Iterator[tuple[Mapping[str, Any], float]]:
    """Yield the lines in which a rate was measured, and its value."""
    for line in outcome.lines:
        norm = line.get("grad_norm")
        value: Any = line.get(name)
        if name == BY_PLUGINS and AFTER_PLUGINS in line:
            value = _taken(norm, line[AFTER_PLUGINS])
        elif name == CLIPPED and grad_clip:
            value = _taken(line.get(AFTER_PLUGINS, norm), grad_clip)
        if _is_finite(value):
            yield line, value


def _taken(norm: Any, limit: Any) -> float | None:
    """Return the share of a norm that is above a limit, or None if one is no finite number."""
    if not (_is_finite(norm) and _is_finite(limit)):
        return None
    return 1 - min(1.0, limit / norm) if norm else 0.0


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
