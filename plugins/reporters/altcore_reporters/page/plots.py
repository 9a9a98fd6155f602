"""Plots of curves: their paths, axes and marks, and the table behind each picture."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

from attrs import frozen

from altcore_reporters.page import svg
from altcore_reporters.page.axes import Axis, axis_of
from altcore_reporters.pictures import Mark

COLOURS, DASHES = 8, 4
"""How many the style tells apart."""
LABELLED = 12
"""Most curves with labels beside their ends."""
COLUMNS = 7
"""Steps in the table behind a plot."""
MOST_MARKS = 60
"""Marks that a plot can hold and still be read."""
LABELS_APART = 0.075
"""Share of a plot's height between labels beside it."""


@frozen
class Look:
    """The colour and the dashes of a curve."""

    colour: int | None = None
    """From 0 to `COLOURS` - 1; None for grey."""
    dash: int = 0
    """From 0, a solid line, to `DASHES` - 1."""

    @property
    def css(self) -> str:
        """Its classes."""
        colour = "x" if self.colour is None else self.colour
        return f"c{colour} d{self.dash}" if self.dash else f"c{colour}"


@frozen
class Series:
    """A curve, or a band about its mean."""

    label: str
    look: Look
    steps: Sequence[int]
    values: Sequence[float]
    lows: Sequence[float] = ()
    """Of a band, beside ``highs``; the values are its means."""
    highs: Sequence[float] = ()
    smooth: tuple[Sequence[int], Sequence[float]] | None = None
    """Steps and running means, in front of the values, which are then pale."""
    has_dots: bool = False
    """Whether the points are few, and are shown."""
    group: int = 0
    """The index of the group that it shows: what is lit up together."""
    marks: Sequence[Mark] = ()


@frozen
class Shape:
    """A path, and how it looks."""

    css: str
    path: str
    group: int
    title: str = ""
    """What the line shows; empty for what lies behind it."""


@frozen
class Glyph:
    """A mark on a plot, in percent of its width and height."""

    kind: str
    x: str
    y: str
    text: str


@frozen
class Plot:
    """A picture of curves, ready to be drawn."""

    key: str
    """Its name in the page."""
    title: str
    unit: str
    x: Axis
    y: Axis
    shapes: Sequence[Shape]
    glyphs: Sequence[Glyph]
    labels: Sequence[tuple[str, Series]]
    """Labels beside the ends of the curves, with their height in percent from the top."""
    level: tuple[str, str] | None
    """A value to compare with: its height in percent, and what it is."""
    head: Sequence[str]
    """Of the table behind it."""
    rows: Sequence[tuple[str, Sequence[str]]]
    """Label and values of each series."""
    ends: Sequence[str]
    """The last value of each series."""
    note: str = ""
    height: int = 4
    """Of the plot: some so many labels fit beside it."""

    @property
    def x_ticks(self) -> list[tuple[str, str]]:
        """Places of steps in percent from the left, and the steps."""
        return [(percent(place), word) for place, word in self.x.ticks(6)]

    @property
    def y_ticks(self) -> list[tuple[str, str]]:
        """Places of values in percent from the top, and the values."""
        return [(percent(1 - place), word) for place, word in self.y.ticks(self.height)]

    @property
    def grid(self) -> str:
        """The path of the horizontal lines."""
        heights = [round((1 - place) * svg.HEIGHT) for place, _ in self.y.ticks(self.height)]
        return "".join(f"M0 {y}h{svg.WIDTH}" for y in heights)

    @property
    def description(self) -> str:
        """The picture in a sentence."""
        known = list(zip(self.rows, self.ends, strict=True))[:COLOURS]
        ends = [f"{label} ends at {end}" for (label, _), end in known]
        more = len(self.rows) - COLOURS
        rest = f", and {more} more" if more > 0 else ""
        return f"{self.title} over steps. {'; '.join(ends)}{rest}. The table follows."


def plot_of(
    key: str,
    title: str,
    unit: str,
    series: Sequence[Series],
    x: Axis,
    *,
    is_share: bool = False,
    may_be_log: bool = False,
    top: float | None = None,
    level: tuple[float, str] | None = None,
    height: int = 4,
) -> Plot | None:
    """Return a plot of the series that have a finite value; None if none has.

    Args:
        key: its name in the page.
        title: what is drawn.
        unit: what its values are.
        series: curves and bands, the ones in front last.
        x: the axis of steps, that all plots share.
        is_share: whether values are shares in 0..1.
        may_be_log: whether the axis is logarithmic if the values ask for it.
        top: what is greater is cut off, and a note says so.
        level: a value to compare with, and what it is.
        height: some so many labels fit beside it.
    """
    shown = [s for s in series if any(map(math.isfinite, s.values))]
    if not shown:
        return None
    values = [v for s in shown for own in (s.values, s.lows, s.highs) for v in own]
    finite = [v for v in values if math.isfinite(v)]
    within = [v for v in finite if top is None or v <= top] or finite
    note = ""
    if len(within) < len(finite):
        note = f"Cut off above {axis_of(within).word(max(within))}; {_most(shown)}."
    if level is not None:
        within.append(level[0])
    y = axis_of(within, is_share=is_share, may_be_log=may_be_log)
    columns = _columns(shown)
    return Plot(
        key=key,
        title=title,
        unit=unit,
        x=x,
        y=y,
        shapes=[shape for s in shown for shape in _shapes(s, x, y)],
        glyphs=list(_glyphs(shown, x, y)),
        labels=_labels(shown, y),
        level=None if level is None else (percent(1 - y.at(level[0])), level[1]),
        head=["curve", *(f"step {step}" for step in columns)],
        rows=[(s.label, [y.word(value_at(s, step)) for step in columns]) for s in shown],
        ends=[y.word(s.values[-1]) for s in shown],
        note=note,
        height=height,
    )


def value_at(series: Series, step: int) -> float | None:
    """Return the value at a step, None if none was measured there."""
    i = bisect_left(series.steps, step)
    is_there = i < len(series.steps) and series.steps[i] == step
    return series.values[i] if is_there else None


def percent(place: float) -> str:
    """Return a place in 0..1 for a style."""
    return f"{100 * place:.2f}".rstrip("0").rstrip(".") + "%"


def _shapes(series: Series, x: Axis, y: Axis) -> Iterable[Shape]:
    look, group = series.look.css, series.group

    def places(steps: Sequence[int], values: Sequence[float]) -> list[svg.Place]:
        return [(x.at(step), y.at(v)) for step, v in zip(steps, values, strict=True)]

    own = places(series.steps, series.values)
    if series.lows:
        lows, highs = places(series.steps, series.lows), places(series.steps, series.highs)
        edges = [(at, low, high) for (at, low), (_, high) in zip(lows, highs, strict=True)]
        yield Shape(f"band {look}", svg.area(edges), group)
    front = own
    if series.smooth is not None:
        front = places(*series.smooth)
        if not series.lows:
            yield Shape(f"line raw {look}", svg.line(own), group)
    yield Shape(f"line {look}", svg.line(front), group, series.label)
    is_single = sum(map(math.isfinite, series.values)) == 1  # a line of it has no length
    if series.has_dots or is_single:
        yield Shape(f"dots {look}", svg.dots(own), group)


def _glyphs(shown: Sequence[Series], x: Axis, y: Axis) -> Iterable[Glyph]:
    found = [(mark, s) for s in shown for mark in s.marks]
    if len(found) > MOST_MARKS:
        found = [(m, s) for m, s in found if m.kind in ("collapse", "stop")][:MOST_MARKS]
    for mark, series in found:
        before = series.values[: bisect_right(series.steps, mark.step)]
        value = next((v for v in reversed(before) if math.isfinite(v)), None)
        height = 0.5 if value is None else min(1.0, max(0.0, y.at(value)))
        who = f"{series.label}, " if len(shown) > 1 else ""
        text = f"{who}step {mark.step}: {mark.text}"
        yield Glyph(mark.kind, percent(x.at(mark.step)), percent(1 - height), text)


def _labels(shown: Sequence[Series], y: Axis) -> list[tuple[str, Series]]:
    """Return labels beside the curves' ends, moved apart where they would overlap."""
    if not 1 < len(shown) <= LABELLED:
        return []
    ends = []
    for series in shown:
        values = series.smooth[1] if series.smooth else series.values
        last = next(v for v in reversed(values) if math.isfinite(v))
        ends.append([1 - min(1.0, max(0.0, y.at(last))), series])
    ends.sort(key=lambda end: end[0])
    for upper, lower in pairwise(ends):
        lower[0] = max(lower[0], upper[0] + LABELS_APART)
    over = ends[-1][0] - 1.0
    if over > 0:
        ends[-1][0] = 1.0
        for lower, upper in pairwise(ends[::-1]):
            upper[0] = min(upper[0], lower[0] - LABELS_APART)
    return [(percent(place), series) for place, series in ends]


def _columns(shown: Sequence[Series]) -> list[int]:
    """Return the first step, the last, and some between, those that most series have."""
    held = Counter(step for s in shown for step in s.steps)
    steps = sorted(held)
    last, number = len(steps) - 1, min(COLUMNS, len(steps))
    if number == 1:
        return steps
    reach = last // (2 * (number - 1))
    inner = [i * last // (number - 1) for i in range(1, number - 1)]
    found = [
        max(steps[max(0, i - reach) : i + reach + 1], key=lambda s: (held[s], -abs(s - steps[i])))
        for i in inner
    ]
    return list(dict.fromkeys([steps[0], *found, steps[-1]]))


def _most(shown: Sequence[Series]) -> str:
    value, label = max(
        (v, s.label) for s in shown for v in (*s.values, *s.highs) if math.isfinite(v)
    )
    return f"{label} reaches {value:.4g}"
