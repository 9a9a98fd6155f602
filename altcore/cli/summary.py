"""The summary that ``altcore train`` and ``altcore runs show`` print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from altcore.builtin_types import duration, rounded
from altcore.cli.sparkline import sparkline
from altcore.cli.terminal import echo, paragraph
from altcore.runs import EVALUATED, last_written, sample_losses

CURVE = 32
"""Characters of the curve of a loss."""


def share(value: Any) -> str:
    """Return a share in percent.

    >>> share(0.1234)
    '12.3 %'
    """
    return "not available" if value is None else f"{value:.1%}".replace("%", " %")


def number(value: Any) -> str:
    """Return a loss with four decimals, or that there is none."""
    return "not available" if value is None else rounded(value)


def lines(summary: Mapping[str, Any], now: float | None = None) -> list[tuple[str, str]]:
    """Return the summary as (name, text) lines; its keys are those of `altcore.runs.Summary`.

    With ``now``, in seconds since the epoch, also how long ago the run was written and the curve of
    its loss, from its record.
    """
    facts, directory = summary["workload_facts"], _from_here(summary["directory"])
    rows = [
        ("run", directory),
        ("format, recipe", _formats(str(summary["format"]), str(summary["recipe"]))),
        ("verdict", summary["verdict"] or "the run is not over"),
        ("status", _status(summary)),
        *(_written(summary, now) if now else []),
        ("steps", _steps(summary)),
        ("time", _time(summary)),
        ("final training loss", number(summary["final_loss"])),
        *(_curve(summary) if now else []),
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


def _written(summary: Mapping[str, Any], now: float) -> list[tuple[str, str]]:
    written = last_written(Path(summary["directory"]))
    return [] if written is None else [("last written", f"{ago(written, now)} ago")]


def ago(then: float, now: float) -> str:
    """Return how long ago something was; a clock that was set back makes no negative time."""
    return duration(max(0.0, now - then))


def _curve(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    losses = sample_losses(Path(summary["directory"]), 4 * CURVE)
    if not losses:
        return []
    ends = f"{number(losses[0])} to {number(summary['final_loss'])}"
    return [("training loss by step", f"{sparkline(losses, CURVE)}  {ends}")]


def _validation(summary: Mapping[str, Any]) -> str:
    best, step, monitor = (summary[k] for k in ("best_val_loss", "best_step", "monitor"))
    at = "" if step is None else f" at step {step}"
    if monitor in (None, "val_loss"):
        best = f"best {number(best)}{at}"
    else:
        best = f"{number(best)} at the best {monitor}{',' * bool(at)}{at}"
    return (
        f"{number(summary['val_loss'])} ({best}; "
        f"the same weights with float32 products {number(summary['val_loss_float32'])})"
    )


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
    speed = f"{summary['items_per_second']:.4g} {summary['item']}/s"
    return f"{summary['seconds']:.1f} s, {summary['step_time_ms']:.3g} ms a step, {speed}"


def finding_lines(findings: Mapping[str, Sequence[Any]]) -> list[str]:
    r"""Return what plugins found, as lines: text as it is, rows as tables.

    >>> rows = [{"ULPs": "mean", "early": 1.5}, {"ULPs": "median", "early": 0.0, "late": 2}]
    >>> for line in finding_lines({"ulp-stats": ["weights move", *rows]}):
    ...     print(line)
    ulp-stats
      weights move
      ULPs    early  late
      mean    1.5
      median  0      2
    """
    lines = []
    for plugin, said in findings.items():
        lines.append(plugin)
        for is_text, group in groupby(said, lambda finding: isinstance(finding, str)):
            lines += [f"  {line}".rstrip() for line in (group if is_text else _table(list(group)))]
    return lines


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    head = list(dict.fromkeys(key for row in rows for key in row))
    cells = [head, *([_cell(row.get(key)) for key in head] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    return ["  ".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)) for line in cells]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _steps(summary: Mapping[str, Any]) -> str:
    steps, epochs = str(summary["steps"]), summary["epochs"]
    steps += f" ({epochs:.3g} epochs)" if epochs else ""
    return f"{steps}, {summary['discarded']} of them discarded" if summary["discarded"] else steps


def _formats(formats: str, recipe: str) -> str:
    return f"{formats} ({recipe})" if "," in formats else f"{formats}, {recipe}"


def share_or(value: Any, otherwise: str) -> str:
    """Return a share in percent, or why there is none."""
    return otherwise if value is None else share(value)


def _shift(shift: Mapping[str, Any]) -> str:
    to = ", ".join(shift["to"]) or "none"
    return f"{', '.join(shift['from'])} -> {to} at step {shift['step']} ({shift['reason']})"


def print_summary(summary: Mapping[str, Any], now: float | None = None) -> None:
    """Print the summary; for ``now`` see `lines`."""
    rows = lines(summary, now)
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        paragraph(f"{name:<{width}}  {text}", indent=width + 2)
    for line in finding_lines(summary["findings"]):
        echo(line)
