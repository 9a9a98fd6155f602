"""The summary of a run in words: what commands print, and what a run in a notebook shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from altcore.builtin_types import rounded
from altcore.runs.identity_changes import Change
from altcore.runs.summary import EVALUATED


def summary_lines(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the summary as (name, text) lines; its keys are those of `Summary`."""
    facts, directory = summary["workload_facts"], _from_here(summary["directory"])
    rows = [
        ("run", directory),
        ("format, recipe", _formats(str(summary["format"]), str(summary["recipe"]))),
        ("verdict", summary["verdict"] or "the run is not over"),
        ("status", _status(summary)),
        ("steps", _steps(summary)),
        ("time", _time(summary)),
        ("final training loss", number(summary["final_loss"])),
        ("validation loss", _validation(summary)),
        *_measures(summary),
    ]
    if "unigram_entropy" in facts:
        rows.append(("unigram entropy of the data", number(facts["unigram_entropy"])))
    if summary["parameter_share"]:
        overflow = summary["overflow_rate"]
        rows += [
            ("stalled stored weights", share_or(summary["stored_stall_rate"], "none stored")),
            ("stalled views of weights", share_or(summary["view_stall_rate"], "no view")),
            ("overflow", "n/a (amax scaling)" if overflow is None else share(overflow)),
            ("flushed to zero", share(summary["flushed_rate"])),
        ]
    if summary["changes"]:
        rows.append(("changed when it went on", "; ".join(map(change_line, summary["changes"]))))
    left_out = f"; left out: {summary['left_out']}" if summary["left_out"] else ""
    shares = (
        f"{share(summary['parameter_share'])} of parameters, {share(summary['flop_share'])} of "
        f"FLOPs{left_out}"
    )
    rows += [
        ("quantized", shares),
        ("format shifts", "; ".join(map(_shift, summary["shifts"])) or "none"),
    ]
    if summary["degraded"]:
        rows.append(("degraded", f"disabled after errors: {', '.join(summary['degraded'])}"))
    where = [f"{directory}/{r}" for r in summary["reports"]]
    rows.append(("reports", ", ".join(where) or f"none; the record is {directory}"))
    return rows


def _from_here(directory: str) -> str:
    """Return a path below the working directory as relative to it, any other as it is."""
    path = Path(directory)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else directory


def _status(summary: Mapping[str, Any]) -> str:
    status = str(summary["status"])
    for collapse in summary["collapses"][:1]:
        status += f"; collapse at step {collapse['step']}: {collapse['reason']}"
    if summary["stopped_by"]:
        status += f" by {summary['stopped_by']}: {summary['stop_reason']}"
    elif summary["error"]:
        status += f": {summary['error']}"
    return status


def _validation(summary: Mapping[str, Any]) -> str:
    best, step, monitor = (summary[k] for k in ("best_val_loss", "best_step", "monitor"))
    at = "" if step is None else f" at step {step}"
    if monitor in (None, "val_loss"):
        best = f"best {number(best)}{at}"
    else:
        best = f"{number(best)} at the best {monitor}{',' * bool(at)}{at}"
    last, plain = (_evaluated(summary, key) for key in ("val_loss", "val_loss_float32"))
    return f"{last} ({best}; the same weights with float32 products {plain})"


def _evaluated(summary: Mapping[str, Any], key: str) -> str:
    """Return a loss of the last evaluation; a summary has null for one that is not finite, too."""
    is_known = key in (summary["evaluation"] or {})
    return "not finite" if summary[key] is None and is_known else number(summary[key])


def _measures(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a row for each measure of the workload, as evaluations have it."""
    last, best = summary["evaluation"], summary["best_evaluation"]
    names = [k.removeprefix("val_") for k in last if k.startswith("val_")]
    return [
        (
            f"validation {n}",
            f"{number(last[f'val_{n}'])} (at the best {number(best.get(f'val_{n}'))})",
        )
        for n in names
        if n not in EVALUATED
    ]


def _time(summary: Mapping[str, Any]) -> str:
    if summary["seconds"] is None:
        return "not available"
    parts, speed = [f"{summary['seconds']:.1f} s"], summary["items_per_second"]
    if summary["step_time_ms"] is not None:
        parts.append(f"{_short(summary['step_time_ms'])} ms a step")
    if speed is not None:  # by a clock that stood still there is none
        parts.append(f"{_short(speed)} {summary['item']}/s")
    return ", ".join(parts)


def _short(value: float) -> str:
    """Return a number with three or more digits, and no exponent.

    >>> _short(1931.2), _short(11083.4), _short(8.1234)
    ('1931', '11083', '8.12')
    """
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _steps(summary: Mapping[str, Any]) -> str:
    steps, epochs = str(summary["steps"]), summary["epochs"]
    steps += f" ({epochs:.3g} epochs)" if epochs else ""
    return f"{steps}, {summary['discarded']} of them discarded" if summary["discarded"] else steps


def _formats(formats: str, recipe: str) -> str:
    return f"{formats} ({recipe})" if "," in formats else f"{formats}, {recipe}"


def share(value: Any) -> str:
    """Return a share in percent; only 0 and 1 themselves look like them.

    >>> share(0.1234), share(1e-5), share(0.99999), share(1.0)
    ('12.3 %', 'under 0.1 %', 'over 99.9 %', '100.0 %')
    """
    if value is None:
        return "not available"
    if 0 < value < 0.0005 or 0.9995 <= value < 1:
        return "under 0.1 %" if value < 0.5 else "over 99.9 %"
    return f"{value:.1%}".replace("%", " %")


def number(value: Any) -> str:
    """Return a loss with four decimals, or that there is none."""
    return "not available" if value is None else rounded(value)


def share_or(value: Any, otherwise: str) -> str:
    """Return a share in percent, or why there is none."""
    return otherwise if value is None else share(value)


def _shift(shift: Mapping[str, Any]) -> str:
    to = ", ".join(shift["to"]) or "none"
    return f"{', '.join(shift['from'])} -> {to} at step {shift['step']} ({shift['reason']})"


def change_line(change: Mapping[str, Any]) -> str:
    """Return what changed when a run went on, and after which step."""
    what = Change("", change["what"], change["before"], change["now"])
    return f"{what} after step {change['step']}"
