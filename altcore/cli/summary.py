"""The summary that ``altcore train`` and ``altcore runs show`` print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from altcore.builtin_types import rounded


def share(value: Any) -> str:
    """Return a share in percent.

    >>> share(0.1234)
    '12.3 %'
    """
    return "not available" if value is None else f"{value:.1%}".replace("%", " %")


def number(value: Any) -> str:
    """Return a loss with four decimals, or that there is none."""
    return "not available" if value is None else rounded(value)


def lines(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the summary as (name, text) lines."""
    workload = summary.get("workload") or {}
    status = summary["status"]
    if summary.get("collapses"):
        first = summary["collapses"][0]
        status += f"; collapse at step {first['step']}: {first['reason']}"
    overflow = summary.get("overflow_rate")
    quantized = (summary.get("parameter_share") or 0) > 0
    rows = [
        ("run", str(summary.get("directory") or summary.get("name"))),
        ("format, recipe", _formats(str(summary.get("format")), str(summary.get("recipe")))),
        ("status", status),
        ("steps", _steps(summary["steps"], summary.get("discarded") or 0)),
        ("final training loss", number(summary.get("final_loss"))),
        (
            "validation loss",
            f"{number(summary.get('val_loss'))} (best {number(summary.get('best_val_loss'))}; "
            f"the same weights with float32 products {number(summary.get('val_loss_float32'))})",
        ),
    ]
    if "unigram_entropy" in workload:
        rows.append(("unigram entropy of the data", number(workload["unigram_entropy"])))
    if quantized:
        rows += [
            ("stalled stored weights", share_or(summary.get("stored_stall_rate"), "none stored")),
            ("stalled views of weights", share_or(summary.get("view_stall_rate"), "no view")),
            ("overflow", "n/a (amax scaling)" if overflow is None else share(overflow)),
            ("flushed to zero", share(summary.get("flushed_rate"))),
        ]
    rows += [
        (
            "quantized",
            f"{share(summary.get('parameter_share'))} of parameters, "
            f"{share(summary.get('flop_share'))} of FLOPs"
            + ("" if not summary.get("left_out") else f"; left out: {summary['left_out']}"),
        ),
        ("format shifts", "; ".join(map(_shift, summary.get("shifts") or [])) or "none"),
    ]
    if summary.get("degraded"):
        rows.append(("degraded", f"disabled after errors: {', '.join(summary['degraded'])}"))
    reports = summary.get("reports") or []
    where = [f"{summary['directory']}/{r}" for r in reports]
    rows.append(("reports", ", ".join(where) or f"none; the record is {summary['directory']}"))
    return rows


def _steps(steps: int, discarded: int) -> str:
    return f"{steps}, {discarded} of them discarded" if discarded else str(steps)


def _formats(formats: str, recipe: str) -> str:
    return f"{formats} ({recipe})" if "," in formats else f"{formats}, {recipe}"


def share_or(value: Any, otherwise: str) -> str:
    """Return a share in percent, or why there is none."""
    return otherwise if value is None else share(value)


def _shift(shift: Mapping[str, Any]) -> str:
    to = ", ".join(shift["to"]) or "none"
    return f"{', '.join(shift['from'])} -> {to} at step {shift['step']} ({shift['reason']})"


def print_summary(summary: Mapping[str, Any]) -> None:
    """Print the summary."""
    rows = lines(summary)
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        click.echo(f"{name:<{width}}  {text}")
