"""Measures of layers over steps: the numbers of heat maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from altcore.plugin import RunRecord

LAYER_MEASURES = {
    "bit-stall/stored_stall_share": "Stalled updates of stored weights",
    "bit-stall/view_stall_share": "Views that did not follow their master weights",
    "ulp-stats/stored_mean": "Movement of stored weights, in ULPs a step",
    "ulp-stats/view_mean": "Movement of quantized views, in ULPs a step",
    "shadow/injected": "Error that each layer injects, relative",
}
"""What is drawn as a heat map, by the measure's name; each has values by layer."""

COLUMNS, ROWS = 120, 64
"""Most steps and layers of a heat map."""


@frozen
class HeatMap:
    """A measure of every layer at every step at which it was measured."""

    measure: str
    title: str
    layers: Sequence[str]
    """In the model's order."""
    steps: Sequence[int]
    """The first step of each column."""
    last_step: int
    """The last step that was measured."""
    values: Sequence[Sequence[float]]
    """A row for each layer, a column for each step; NaN where it was not measured or not finite."""
    all_layers: int
    """How many layers were measured: if more than are here, these have the greatest values."""

    @property
    def range(self) -> tuple[float, float]:
        """The least and the greatest value."""
        finite = [v for row in self.values for v in row if math.isfinite(v)]
        return min(finite), max(finite)


def heat_maps(record: RunRecord) -> list[HeatMap]:
    """Return the heat maps of `LAYER_MEASURES` that the run measured."""
    found = (heat_map(record, measure) for measure in LAYER_MEASURES)
    return [picture for picture in found if picture is not None]


def heat_map(record: RunRecord, measure: str) -> HeatMap | None:
    """Return a measure by layer and step; None if no layer has a finite value.

    Of more than `COLUMNS` steps several share a column, which has the greatest of their values.
    Of more than `ROWS` layers those with the greatest values are kept.
    """
    prefix = f"{measure}/"
    at: dict[int, dict[str, float]] = {}
    for line in record.metrics:
        own = {
            key[len(prefix) :]: float(value)
            for key, value in line.items()
            if key.startswith(prefix) and isinstance(value, int | float)
        }
        if own:
            at.setdefault(line["step"], {}).update(own)
    layers = list(dict.fromkeys(layer for own in at.values() for layer in own))
    steps = sorted(at)
    if not any(math.isfinite(v) for own in at.values() for v in own.values()):
        return None
    number = min(len(steps), COLUMNS)
    cut = [i * len(steps) // number for i in range(number + 1)]
    columns = [steps[a:b] for a, b in pairwise(cut)]
    rows = {
        layer: [_greatest([at[s].get(layer, math.nan) for s in own]) for own in columns]
        for layer in layers
    }
    kept = layers
    if len(layers) > ROWS:
        worst = sorted(layers, key=lambda layer: _greatest(rows[layer]), reverse=True)[:ROWS]
        kept = [layer for layer in layers if layer in worst]
    title = LAYER_MEASURES.get(measure, measure)
    values = [rows[layer] for layer in kept]
    return HeatMap(
        measure, title, kept, [own[0] for own in columns], steps[-1], values, len(layers)
    )


def _greatest(values: Sequence[float]) -> float:
    return max((v for v in values if math.isfinite(v)), default=math.nan)
