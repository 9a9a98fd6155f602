"""The evidence of a collapse in sentences and tables: quantizers, updates and gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from altcore_reporters.failure_samples import STOCHASTIC
from altcore_reporters.markdown import AMAX, is_finite, number, rate, some, table, text

Event = Mapping[str, Any]

WORST = 12
"""Rows of a table by layer."""


def readings(event: Event) -> list[str]:
    """Return what the measurements of a collapse say, in sentences."""
    rows, gradients = event.get("layers") or [], event.get("gradients") or {}
    found = []
    for key, is_stochastic, of, meaning in (
        ("updates", False, "stored weights", "left the weight where it was"),
        ("updates", True, "stored weights rounded stochastically", "waited for their chance"),
        ("moved", False, "float32 master weights", "left the view where it was: a delay"),
    ):
        own = [r for r in rows if key in r and is_stochastic == (r.get("rounding") == STOCHASTIC)]
        total, stalled = sum(r[key] for r in own), sum(r["stalled"] for r in own)
        if total:
            found.append(f"{rate(stalled / total)} of the nonzero updates of {of} {meaning}.")
    zero = [name for name, g in gradients.items() if g["zero_share"] == 1]
    if gradients:
        which = f": {some(zero)}" if zero else ""
        found.append(f"{len(zero)} of {len(gradients)} gradients are zero everywhere{which}.")
        broken = [n for n, g in gradients.items() if not is_finite(g["norm"])]
        if broken:
            found.append(
                f"{len(broken)} of {len(gradients)} gradients are not finite: {some(broken)}."
            )
    met = [r for r in rows if r.get("elements")]
    if met:
        worst = max(met, key=lambda r: r["flushed"] / r["elements"])
        share = sum(r["flushed"] for r in met) / sum(r["elements"] for r in met)
        most = rate(worst["flushed"] / worst["elements"])
        where = f", most in {worst['layer']} {worst['operand']} ({most})" if share else ""
        found.append(f"{rate(share)} of what was quantized was flushed to zero{where}.")
    able = [r for r in met if r["overflow"] is not None]
    if able:
        share = sum(r["overflow"] for r in able) / sum(r["elements"] for r in able)
        found.append(f"{rate(share)} of what could overflow did.")
    elif met:
        found.append("Nothing could overflow: every scale follows the tensor's largest magnitude.")
    return [text(sentence) for sentence in found]


def gradients(event: Event) -> list[str]:
    """Return a table of the gradients: those that are not finite, then those with most zeros."""
    found = event.get("gradients")
    if not found:
        return []
    worst = sorted(found.items(), key=lambda x: (is_finite(x[1]["norm"]), -x[1]["zero_share"]))
    rows = [(text(n), rate(g["zero_share"]), number(g["norm"])) for n, g in worst]
    return _worst(("parameter", "zero elements", "norm, after clipping"), rows)


def stalls(event: Event) -> list[str]:
    """Return a table of the updates that moved nothing, by layer."""
    rows = []
    for row in event.get("layers") or []:
        for key, kind in (("updates", "stored"), ("moved", "view")):
            if key in row:
                kind += ", stochastic" if row.get("rounding") == STOCHASTIC else ""
                share = row["stalled"] / row[key] if row[key] else None
                rows.append((share, (text(row["layer"]), kind, str(row[key]), rate(share))))
    if not rows:
        return []
    rows.sort(key=lambda r: -1.0 if r[0] is None else r[0], reverse=True)
    return [
        "As of the last update that was measured. A stored weight that stalls has lost its update, "
        "unless it is rounded stochastically: then the mean is kept. A view that stalls is late, "
        "its float32 master has moved.",
        "",
        *_worst(("layer", "kind", "nonzero updates", "stalled"), [r for _, r in rows]),
    ]


def losses(event: Event) -> list[str]:
    """Return a table of what quantization lost, by layer and operand."""
    met = [r for r in event.get("layers") or [] if r.get("elements")]
    if not met:
        return []
    met.sort(key=lambda r: -(r["flushed"] + (r["overflow"] or 0)) / r["elements"])
    rows = [
        (
            text(r["layer"]),
            text(r["operand"]),
            text(r["format"]),
            rate(r["flushed"] / r["elements"]),
            AMAX if r["overflow"] is None else rate(r["overflow"] / r["elements"]),
            str(r["nonfinite"]),
        )
        for r in met
    ]
    return _worst(("layer", "operand", "format", "flushed", "overflow", "non-finite"), rows)


def _worst(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rest = len(rows) - WORST
    return table(head, rows[:WORST]) + (["", f"And {rest} more."] if rest > 0 else [])
