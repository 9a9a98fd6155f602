"""The failure reports that the original experiments wrote, read back.

They lie in ``CHECKPOINTS/RUN/failure_reports/*.md``: tables of two columns with the names below, a
sentence with the share of near-zero gradients, and the trend of the loss.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from altcore_reporters.failure_evidence import (
    FROM_MEASUREMENTS,
    FROM_REASON,
    MOST,
    OVERFLOW,
    UNDERFLOW,
    VANISHING,
    mode_of_reason,
)
from altcore_reporters.markdown import rate

_SPARSITY = re.compile(r"near-zero gradients[^\n]*?([\d.]+) ?%")
_RATES = {
    "Bit-Stall Rate": "bit_stall_rate",
    "Overflow Rate": "overflow_rate",
    "Underflow Rate": "underflow_rate",
}


def read_report(path: Path) -> dict[str, Any]:
    """Return what a report says: format, step and reason of the collapse, losses and rates.

    What it does not say is None or NaN. ``name`` is that of the run's folder.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    cells = dict(re.findall(r"^\| *([^|\n]+?) *\| *([^|\n]*?) *\|[ \t]*$", text, re.MULTILINE))
    sparsity = _SPARSITY.search(text)
    reason = cells.get("Collapse Reason")
    found = {
        "format": cells.get("Format"),
        "name": path.parent.parent.name,
        "state": "crashed",
        "collapse_step": _number(cells.get("Collapse Step")),
        "reason": reason,
        "last_good_loss": _last_good(text, cells),
        "grad_sparsity": float(sparsity[1]) / 100 if sparsity else math.nan,
        **{key: _number(cells.get(name)) for name, key in _RATES.items()},
        "source": str(path),
    }
    return found | _mode(found)


def _mode(found: dict[str, Any]) -> dict[str, Any]:
    """Return the mode, from the report's measurements if they show one."""
    evidence = [
        (mode, f"{rate(found[key])} {of}.")
        for mode, key, above, of in (
            (OVERFLOW, "overflow_rate", 0.0, "of the values overflowed"),
            (VANISHING, "grad_sparsity", MOST, "of the gradients were near zero"),
            (UNDERFLOW, "underflow_rate", MOST, "of the values underflowed"),
        )
        if found[key] > above
    ]
    return {
        "failure_mode": evidence[0][0] if evidence else mode_of_reason(found["reason"]),
        "mode_from": FROM_MEASUREMENTS if evidence else FROM_REASON,
        "evidence": " ".join(text for _, text in evidence),
    }


def _last_good(text: str, cells: dict[str, str]) -> float:
    """Return the last finite loss: the final one, else of the trend, else the best."""
    trend = text.partition("### Loss Trend")[2].partition("\n## ")[0]
    losses = [_number(x) for x in re.findall(r"^\| *\d+ *\| *(\S+) *\|", trend, re.MULTILINE)]
    known = [_number(cells.get("Best Loss")), *losses, _number(cells.get("Final Loss"))]
    return next((x for x in reversed(known) if math.isfinite(x)), math.nan)


def _number(cell: str | None) -> float:
    """Return a cell's number, a percentage as a share; NaN if it has none."""
    try:
        return float((cell or "").rstrip("%")) / (100 if (cell or "").endswith("%") else 1)
    except ValueError:
        return math.nan
