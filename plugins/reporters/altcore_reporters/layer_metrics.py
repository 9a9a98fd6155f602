"""Measures of layers at the end of runs, as a frame."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from altcore_reporters.frames import run_id
from altcore_reporters.markdown import is_finite

if TYPE_CHECKING:
    import pandas as pd

    from altcore.plugin import RunRecord

MEASURES = (
    "shadow/injected",
    "ulp-stats/stored_zero_share",
    "ulp-stats/view_zero_share",
    "overflow/sqnr_db",
)
"""Measures of diagnostics that are compared by layer, if a run has them."""


def layer_frame(records: Iterable[RunRecord], measures: Sequence[str] = MEASURES) -> pd.DataFrame:
    """Return the measures of each layer, means over the last tenth of the lines that have them.

    Args:
        records: the runs.
        measures: their names in metrics.jsonl, before the layer's.

    Returns:
        A row a run and layer: run_id, format, layer, and a column a measure that any run has. What
        a run did not measure is NaN.
    """
    import pandas as pd

    rows = []
    for record in records:
        found: dict[str, dict[str, float]] = {}
        for measure in measures:
            prefix = f"{measure}/"
            lines = [x for x in record.steps if any(k.startswith(prefix) for k in x)]
            for layer, value in _means(lines[-max(1, math.ceil(len(lines) / 10)) :], prefix):
                found.setdefault(layer, {})[measure] = value
        about = {"run_id": run_id(record), "format": record.summary["format"] or "none"}
        rows += [{**about, "layer": layer, **values} for layer, values in found.items()]
    known = [m for m in measures if any(m in row for row in rows)]
    return pd.DataFrame(rows, columns=["run_id", "format", "layer", *known])


def _means(lines: Sequence[Any], prefix: str) -> Iterable[tuple[str, float]]:
    values: dict[str, list[float]] = {}
    for line in lines:
        for key, value in line.items():
            if key.startswith(prefix) and is_finite(value):
                values.setdefault(key.removeprefix(prefix), []).append(value)
    return [(layer, math.fsum(own) / len(own)) for layer, own in values.items()]
