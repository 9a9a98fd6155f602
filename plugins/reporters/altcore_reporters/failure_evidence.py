"""Why a run failed, from what was measured in it.

A run failed if it collapsed, if it did not come to its end, or if it did and has not learned. Its
*mode* follows from measurements where there are any, and says with which; a reason in words is all
that is left otherwise.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from altcore_reporters.markdown import is_finite, number, rate

if TYPE_CHECKING:
    from altcore.plugin import RunRecord

OVERFLOW, UNDERFLOW, VANISHING = "overflow", "underflow", "gradient_vanishing"
STALL, DIVERGENCE, NON_FINITE, UNKNOWN = "stall", "divergence", "non_finite", "unknown"
MODES = {
    OVERFLOW: "values beyond the format's range, or beyond float32's",
    UNDERFLOW: "most of what was quantized was flushed to zero",
    VANISHING: "gradients are zero",
    STALL: "updates of stored weights are lost: smaller than the grid's spacing",
    DIVERGENCE: "the loss rises",
    NON_FINITE: "a NaN, while nothing was measured to overflow",
    UNKNOWN: "nothing that was recorded explains it",
}
"""Each mode, and what it means."""

FROM_MEASUREMENTS, FROM_REASON = "measurements", "the reason alone"
MOST = 0.5
"""The share of gradients or values from which on they are a cause."""
STALLED = 0.95
"""The share of lost updates from which on they are a cause: runs that learn lose up to 0.925."""
STOCHASTIC = "stochastic"
FAILED = ("collapsed", "stopped", "interrupted", "failed")
"""Statuses of runs that did not come to their end. Some that did have not learned."""

_DENIED = re.compile(
    r"\b(?:no|nor|neither|never|without)\s+(?:an?\s+)?[\w-]+(?:(?:\s+or\s+|/)[\w-]+)*"
)
"""What a reason says was not there: "no NaN or overflow"."""

Line = Mapping[str, Any]


def mode_of_reason(reason: str | None, grad_sparsity: float | None = None) -> str:
    """Return the mode that a reason in words and the share of zero gradients suggest."""
    words = reason.lower() if isinstance(reason, str) else ""  # A frame has NaN for no reason.
    words = _DENIED.sub("", words)
    if re.search(r"(?<![a-z])(nan|inf)(?![a-z])|infinit|non-?finite|not finite", words):
        return OVERFLOW
    if is_finite(grad_sparsity) and grad_sparsity > MOST:
        return VANISHING
    named = re.search(f"{UNDERFLOW}|{OVERFLOW}", words)
    return named[0] if named else UNKNOWN


def failure_of(record: RunRecord) -> dict[str, Any] | None:
    """Return what is known of a run's failure, None if it did not fail or is not over.

    Returns:
        format, name, state (altcore's status), collapse_step (NaN if no step collapsed), reason,
        last_good_loss, grad_sparsity, failure_mode, mode_from, evidence and source.
    """
    own = record.summary
    status, collapses = own["status"], own["collapses"]
    step = own["failure_step"]
    if collapses:
        step, reason = collapses[0]["step"], collapses[0]["reason"]
    elif status in FAILED:
        step = own["steps"] if step is None else step
        reason = own["failure_reason"] or own["stop_reason"] or own["error"]
    elif status == "finished" and own["learned"] is False:
        reason = _unlearned(own)
    else:
        return None
    collapse = next((e for e in record.events if e["event"] == "collapse"), None)
    sparsity = _sparsity(collapse)
    found = list(_findings(record, collapse, sparsity))
    return {
        "format": own["format"] or "none",
        "name": record.name,
        "state": status,
        "collapse_step": math.nan if step is None else step,
        "reason": reason,
        "last_good_loss": _last_good(record, math.inf if step is None else step),
        "grad_sparsity": math.nan if sparsity is None else sparsity,
        "failure_mode": found[0][0] if found else mode_of_reason(reason, sparsity),
        "mode_from": FROM_MEASUREMENTS if found else FROM_REASON,
        "evidence": " ".join(text for _, text in found),
        "source": record.source,
    }


def _findings(
    record: RunRecord, collapse: Line | None, sparsity: float | None
) -> Iterator[tuple[str, str]]:
    """Yield each mode for which something was measured, with the sentence that says what.

    The cause that the collapse detector named comes first, then what the end of the run shows.
    """
    own, cause = record.summary, (collapse or {}).get("cause")
    if collapse and cause == "nan_patience":
        yield _non_finite(record, collapse["step"])
    if collapse and cause == "diverged":
        yield DIVERGENCE, f"{_sentence(collapse['reason'])}"
    if collapse and cause == "stalled":
        yield STALL, f"{_sentence(collapse['reason'])}"
    flushed = own.get("flushed_final")
    if is_finite(flushed) and flushed > MOST:
        yield UNDERFLOW, f"{rate(flushed)} of the quantized values were flushed to zero at the end."
    if sparsity is not None and sparsity > MOST:
        yield VANISHING, f"{rate(sparsity)} of the gradients' elements were zero at the collapse."
    elif cause == "dead_gradients":
        yield VANISHING, f"{_sentence(collapse['reason'])}"
    lost = _lost_updates(record)
    if cause != "stalled" and lost is not None and lost > STALLED:
        yield STALL, f"{rate(lost)} of the nonzero updates of stored weights were lost."
    overflow, limit = own.get("overflow_final"), record.config.get("overflow_threshold", 0.01)
    if is_finite(overflow) and overflow > limit:
        yield OVERFLOW, f"{rate(overflow)} of the quantized values overflowed at the end."
    first, last = _ends(record)
    if cause != "diverged" and first is not None and last is not None and last > first:
        yield DIVERGENCE, f"The loss rose from {number(first)} to {number(last)}."


def _non_finite(record: RunRecord, step: int) -> tuple[str, str]:
    """Return the mode of a collapse by steps that were not finite, and what they were."""
    met = [e for e in record.events if e["event"] == "nan" and e["step"] <= step]
    rates = [x["overflow_rate"] for x in record.steps if is_finite(x.get("overflow_rate"))]
    if not met:
        return OVERFLOW, "Steps were not finite."
    nan = met[-1]
    where = f" of {nan['layer']}" if nan.get("layer") else ""
    operand = f" ({nan['operand']})" if nan.get("operand") else ""
    text = f"At step {nan['step']} the {nan['what']}{where}{operand} was {nan.get('value')} first."
    if isinstance(nan.get("value"), float) and math.isinf(nan["value"]):
        return OVERFLOW, text
    if any(rates):
        return OVERFLOW, f"{text} Up to {rate(max(rates))} of the quantized values overflowed."
    return NON_FINITE, f"{text} Nothing was measured to overflow."


def _lost_updates(record: RunRecord) -> float | None:
    """Return the share of updates that stored weights lost over the whole run.

    At the end it says less: the learning rate is low then, also in a run that has learned. A
    weight that is rounded stochastically loses none: it waits for its chance.
    """
    lost = [x["lost_stall_rate"] for x in record.steps if is_finite(x.get("lost_stall_rate"))]
    if lost:
        return math.fsum(lost) / len(lost)
    if _stores_stochastically(record.config.get("recipe")):
        return None
    found = record.summary.get("stored_stall_rate")
    return found if is_finite(found) else None


def _stores_stochastically(recipe: Any) -> bool:
    """Whether a recipe rounds stored weights stochastically, anywhere."""
    if not isinstance(recipe, Mapping):
        return False
    return any(
        (str(key).startswith("stored_weight") and value.get("rounding") == STOCHASTIC)
        or _stores_stochastically(value)
        for key, value in recipe.items()
        if isinstance(value, Mapping)
    )


def _sparsity(collapse: Line | None) -> float | None:
    """Return the mean share of zeros in the gradients, as the collapse has them."""
    shares = [g["zero_share"] for g in ((collapse or {}).get("gradients") or {}).values()]
    known = [s for s in shares if is_finite(s)]
    return math.fsum(known) / len(known) if known else None


def _unlearned(own: Mapping[str, Any]) -> str:
    entropy = (own.get("workload_facts") or {}).get("unigram_entropy")
    beside = f", the unigram entropy is {entropy:.4g}" if is_finite(entropy) else ""
    loss = (
        f": the validation loss is {own['val_loss']:.4g}" if is_finite(own.get("val_loss")) else ""
    )
    return f"did not learn{loss}{beside}"


def _last_good(record: RunRecord, step: float) -> float:
    """Return the last finite loss up to a step of which the update was kept."""
    good = [
        x["loss"]
        for x in record.steps
        if x["step"] <= step and is_finite(x["loss"]) and not x.get("discarded")
    ]
    final = record.summary.get("final_loss")
    return good[-1] if good else final if is_finite(final) else math.nan


def _ends(record: RunRecord) -> tuple[float | None, float | None]:
    """Return the first loss, and the mean of the last tenth."""
    losses = [x["loss"] for x in record.steps if is_finite(x["loss"])]
    last = _tail(losses)
    return (losses[0], math.fsum(last) / len(last)) if len(losses) > 1 else (None, None)


def _tail(values: Sequence[Any]) -> Sequence[Any]:
    return values[-max(1, math.ceil(len(values) / 10)) :]


def _sentence(reason: str) -> str:
    return f"{reason[:1].upper()}{reason[1:]}."
