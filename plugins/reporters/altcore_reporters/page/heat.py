"""Heat maps: layers by steps, in a few levels of one colour."""

from __future__ import annotations

import math
from collections.abc import Sequence

from attrs import frozen

from altcore_reporters.page import svg
from altcore_reporters.page.axes import LOG_RATIO, Axis
from altcore_reporters.page.plots import COLUMNS, percent
from altcore_reporters.page.words import plural
from altcore_reporters.pictures import HeatMap
from altcore_reporters.pictures.layers import COLUMNS as STEPS

TICKS = 8
"""Most steps below a heat map."""
LEVELS = 9
"""Levels of the colour."""


@frozen
class Heat:
    """A heat map, ready to be drawn."""

    title: str
    width: int
    height: int
    paths: Sequence[tuple[int, str]]
    """The cells of each level."""
    layers: Sequence[str]
    """Names without what all begin with."""
    prefix: str
    """What all names begin with."""
    ticks: Sequence[tuple[str, str]]
    """Places in percent, and steps."""
    low: str
    high: str
    edges: str
    """What each level stands for, separated by bars."""
    head: Sequence[str]
    """Of the table behind it."""
    rows: Sequence[tuple[str, Sequence[str]]]
    note: str
    steps: str
    """The first step of each column, separated by spaces."""

    @property
    def description(self) -> str:
        """The picture in a sentence."""
        return (
            f"{self.title}, for {plural(len(self.layers), 'layer')} over steps: from {self.low} "
            f"to {self.high}. The table follows."
        )


def heat_of(picture: HeatMap) -> Heat:
    """Return a heat map to be drawn."""
    axis = _axis(picture)
    levels = [[_level(axis, v) for v in row] for row in picture.values]
    used = sorted({level for row in levels for level in row if level is not None})
    number = len(picture.steps)
    prefix = _prefix(picture.layers)
    names = [layer.removeprefix(prefix) for layer in picture.layers]
    columns = _some(range(number), COLUMNS)
    ends = [*picture.steps[1:], picture.last_step + 1]
    notes = []
    if any(level is None for row in levels for level in row):
        notes.append("Blank: not measured, or not finite.")
    if picture.all_layers > len(names):
        notes.append(f"The {len(names)} of {picture.all_layers} layers with the greatest values.")
    if any(b > a + 1 for a, b in zip(picture.steps, ends, strict=True)) and number == STEPS:
        notes.append("A column shows the greatest value of its steps.")
    return Heat(
        title=picture.title,
        width=number * svg.CELL,
        height=len(names) * svg.CELL,
        paths=[(level, svg.cells(levels, level)) for level in used],
        layers=names,
        prefix=prefix,
        ticks=[
            (percent((i + 0.5) / number), str(picture.steps[i]))
            for i in _some(range(number), TICKS)
        ],
        low=axis.word(axis.low),
        high=axis.word(axis.high),
        edges="|".join(axis.word(v) for v in _edges(axis)),
        head=["layer", *(f"step {picture.steps[i]}" for i in columns)],
        rows=[
            (name, [axis.word(row[i] if math.isfinite(row[i]) else None) for i in columns])
            for name, row in zip(names, picture.values, strict=True)
        ],
        note=" ".join(notes),
        steps=" ".join(map(str, picture.steps)),
    )


def _prefix(names: Sequence[str]) -> str:
    """Return the modules in which all layers are, with the dot.

    >>> _prefix(["transformer.wte", "transformer.h.0.mlp", "transformer.h.1.mlp"])
    'transformer.'
    """
    paths = [name.split(".")[:-1] for name in names]
    shared = ""
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared += f"{parts[0]}."
    return shared


def _axis(picture: HeatMap) -> Axis:
    low, high = picture.range
    is_share = picture.measure.endswith("_share")
    if low > 0 and high > LOG_RATIO * low:
        return Axis(low, high, is_log=True, is_share=is_share)
    if low == high:  # one colour for all: it says how far from 0
        low, high = min(low, 0.0), max(high, 0.0) or 1.0
    return Axis(low, high, is_share=is_share)


def _level(axis: Axis, value: float) -> int | None:
    if not math.isfinite(value):
        return None
    return min(LEVELS - 1, max(0, int(axis.at(value) * LEVELS)))


def _edges(axis: Axis) -> list[float]:
    shares = [k / LEVELS for k in range(LEVELS + 1)]
    if axis.is_log:
        return [axis.low * (axis.high / axis.low) ** s for s in shares]
    return [axis.low + s * (axis.high - axis.low) for s in shares]


def _some(values: Sequence[int], most: int) -> list[int]:
    number = min(most, len(values))
    if number < 2:
        return list(values)
    return [values[i * (len(values) - 1) // (number - 1)] for i in range(number)]
