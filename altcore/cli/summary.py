"""The summary that ``altcore train`` and ``altcore runs show`` print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from altcore.builtin_types import duration
from altcore.cli.sparkline import sparkline
from altcore.cli.terminal import echo, paragraph

CURVE = 32
"""Characters of the curve of a loss."""


def lines(summary: Mapping[str, Any], now: float | None = None) -> list[tuple[str, str]]:
    """Return the summary as (name, text) lines; its keys are those of `altcore.runs.Summary`.

    With ``now``, in seconds since the epoch, also when the run was last written and the curve of
    its loss, from its record.
    """
    from altcore.runs import summary_lines

    rows = summary_lines(summary)
    if now is None:
        return rows
    more = {"status": _written(summary, now), "final training loss": _curve(summary)}
    return [row for own in rows for row in (own, *more.get(own[0], []))]


def _written(summary: Mapping[str, Any], now: float) -> list[tuple[str, str]]:
    from altcore.runs import last_written

    written = last_written(Path(summary["directory"]))
    if written is None:
        return []
    time = ago(written, now)
    said = f"{time[1:]} ahead of this clock" if time.startswith("-") else f"{time} ago"
    return [("last written", said)]


def ago(then: float, now: float) -> str:
    """Return how long ago something was, with a minus sign if the clock was set back since.

    Clocks of two machines differ a little: what is ahead by less than a minute is now.
    """
    past = now - then
    return f"-{duration(-past)}" if past <= -60 else duration(max(0.0, past))


def _curve(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    from altcore.runs import number, sample_losses

    losses = sample_losses(Path(summary["directory"]), 4 * CURVE)
    if not losses:
        return []
    ends = f"{number(losses[0])} to {number(summary['final_loss'])}"
    return [("training loss by step", f"{sparkline(losses, CURVE)}  {ends}")]


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


def print_summary(summary: Mapping[str, Any], now: float | None = None) -> None:
    """Print the summary; for ``now`` see `lines`."""
    rows = lines(summary, now)
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        paragraph(f"{name:<{width}}  {text}", indent=width + 2)
    for line in finding_lines(summary["findings"]):
        echo(line)
