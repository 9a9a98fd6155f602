"""The summary of a run, made of the run, its history and its record."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from altcore.engine.apply import names_of_formats
from altcore.engine.checked_workload import ENTROPY
from altcore.engine.clock import SPENT, rate, spent_in
from altcore.engine.collapse import Trend
from altcore.engine.history import RunHistory
from altcore.engine.state import Run
from altcore.runs import (
    TAIL,
    TIMINGS,
    Summary,
    finite,
    has_learned,
    mean_of,
    read_lines,
    step_lines,
    tail,
    verdict_of,
)

FEWEST = 20
"""Steps at the end that are needed to say that the loss still falls."""

RISE_OF = 5
"""Steps whose median says where the training loss was: before an evaluation, and last."""

RATES = {
    "stored_stall": "stored_stall_rate",
    "view_stall": "view_stall_rate",
    "overflow": "overflow_rate",
    "underflow": "underflow_rate",
    "flushed": "flushed_rate",
}
"""The rates of the summary: their mean over the run is called ``NAME_rate``, that over the last
tenth ``NAME_final``."""
UNDERFLOW = "underflow_share"
"""The measure of a diagnostic that is the underflow rate: the core does not measure it."""

Lines = list[dict[str, Any]]
Steps = Sequence[tuple[int, float, bool]]
"""As in `RunHistory.recent`."""


def summarize(
    run: Run,
    history: RunHistory,
    status: str,
    facts: Mapping[str, Any],
    findings: Mapping[str, list[Any]],
    error: str | None = None,
) -> Summary:
    """Return the summary of a run that is over."""
    lines = step_lines(run.directory)
    learned, judged_at = learning(run, history, unigram_entropy(facts))
    stop = history.stop
    return Summary(
        name=run.directory.name,
        directory=str(run.directory),
        status=status,
        learned=learned,
        verdict=verdict_of(
            learned=learned,
            status=status,
            steps=run.step,
            judged_at=judged_at,
            discarded=history.discarded,
            is_improving=is_improving(history.recent, run.step - history.discarded),
            collapses=history.collapses,
            stopped_by=stop.get("plugin"),
            changes=run.config.changes,
        ),
        **facts,
        last_formats=names_of_formats(run),
        steps=run.step,
        discarded=history.discarded,
        epochs=run.epoch.after(run.step) if run.epoch else None,
        monitor=run.config.monitor,
        **times(read_lines(run.directory / TIMINGS)),
        item=run.workload.item,
        **losses(history),
        **validation(history),
        first_evaluation=history.first_evaluation,
        **failure(run.step, history, status, error),
        collapses=history.collapses,
        stopped_by=stop.get("plugin"),
        stop_reason=stop.get("reason"),
        error=error,
        **rates(lines),
        shifts=run.shifts,
        changes=list(run.config.changes),
        findings=dict(findings),
        reports=run.reports,
        degraded=run.degraded,
    )


def learning(run: Run, history: RunHistory, entropy: float | None) -> tuple[bool | None, int]:
    """Return whether the run learned, and by which step that was judged."""
    last, first = history.evaluation, history.first_evaluation
    learned = has_learned(last, first, entropy=entropy)
    if not learned or last["step"] == run.step:
        return learned, last.get("step", run.step)
    if has_learned(last, first, entropy=entropy, rise=rise_since(last, history.recent)):
        return True, last["step"]
    return False, run.step


def unigram_entropy(facts: Mapping[str, Any]) -> float | None:
    """Return the data's entropy, in the loss's unit, of the facts that the run recorded."""
    return finite(facts["workload_facts"].get(ENTROPY))


def rise_since(evaluation: Mapping[str, Any], steps: Steps) -> float:
    """Return by how much the training loss rose since an evaluation: by medians.

    A loss that is not finite is infinite. Without steps before it, the validation loss is taken.
    """
    split: tuple[list[float], list[float]] = ([], [])
    for step, loss, _ in steps:
        split[step > evaluation["step"]].append(loss if math.isfinite(loss) else math.inf)
    before, since = (losses[-RISE_OF:] for losses in split)
    if not since:
        return 0.0
    return median(since) - (median(before) if before else evaluation["val_loss"])


def is_improving(steps: Steps, updates: int) -> bool:
    """Whether the training loss still fell over the last tenth of the steps that made an update.

    It did if the mean of the second half is below that of the first by more than two standard
    errors. Fewer steps than `FEWEST` do not tell.

    Args:
        steps: the last ones.
        updates: how many steps of the run made one.
    """
    kept = [(step, loss) for step, loss, is_update in steps if is_update]
    window = kept[-max(FEWEST, math.ceil(TAIL * updates)) :]
    return len(window) >= FEWEST and Trend.of(window).training_improves


def times(lines: Lines) -> dict[str, Any]:
    """Return time and throughput, from the lines of timings.jsonl."""
    spent = spent_in(lines)
    if spent is None:
        return {}
    elapsed, steps, seconds, items = (spent[key] for key in SPENT)
    return {
        "seconds": elapsed,
        "step_time_ms": 1e3 * seconds / max(1, steps),
        "items_per_second": rate(items, seconds),
    }


def losses(history: RunHistory) -> dict[str, Any]:
    """Return the last training loss that is finite, the lowest one, and the step of each."""
    found: dict[str, Any] = {}
    for name in ("final_loss", "best_loss"):
        found[name], found[f"{name}_step"] = getattr(history, name) or (None, None)
    return found


def validation(history: RunHistory) -> dict[str, Any]:
    """Return the validation at the end and at the best."""
    last, best = history.evaluation, history.best
    return {
        "val_loss": finite(last.get("val_loss")),
        "val_loss_float32": finite(last.get("val_loss_float32")),
        "best_val_loss": finite(best.get("val_loss")),
        "best_step": best.get("step"),
        "evaluation": last,
        "best_evaluation": best,
    }


def failure(step: int, history: RunHistory, status: str, error: str | None) -> dict[str, Any]:
    """Return where and why the run failed: the first collapse, else the Stop, else the error."""
    first = next(iter(history.collapses), None) or history.stop
    if first:
        return {"failure_step": first["step"], "failure_reason": first["reason"]}
    return {"failure_step": step, "failure_reason": error} if status == "failed" else {}


def rates(lines: Lines) -> dict[str, Any]:
    """Return each rate over the whole run and over its last tenth, and the final stall rate."""
    found: dict[str, Any] = {}
    for name, key in RATES.items():
        own = lines if name != "underflow" else underflow(lines)
        found |= {f"{name}_rate": mean_of(own, key), f"{name}_final": mean_of(tail(own), key)}
    kind = next((k for k in ("stored", "view") if found[f"{k}_stall_rate"] is not None), None)
    stall = found[f"{kind}_stall_final"] if kind else None
    return {**found, "bit_stall_of": kind, "bit_stall_final": stall}


def underflow(lines: Lines) -> Lines:
    """Return the underflow rate of the lines on which a diagnostic measured it."""
    shares = ((v for k, v in x.items() if k.partition("/")[2] == UNDERFLOW) for x in lines)
    return [{RATES["underflow"]: value} for own in shares for value in own]
