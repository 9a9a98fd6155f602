"""The pictures of a page on a study, ready to be drawn: places in percent, and paths."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean, median, quantiles

from attrs import frozen

from altcore_reporters.page import svg
from altcore_reporters.page.axes import Axis, axis_of
from altcore_reporters.page.plots import percent
from altcore_reporters.study_pages.document import Bar, Curve, Curves, Interval, Intervals
from altcore_reporters.study_pages.words import factor, number

WIDEST = 2.5
"""An axis reaches so many times as far as the farthest mean, wherever intervals end."""
FAR = 20.0
"""The axis is bent if a mean is so many times as large as most, and as what counts as none."""
APART = 0.16
"""Share of a panel's width between two rates that are written."""

Tick = tuple[str, str]
"""A place in percent, and the text there."""


@frozen
class DrawnBar:
    """A row of a picture of intervals."""

    label: str
    text: str
    is_told: bool
    left: str
    width: str
    mean: str


@frozen
class DrawnIntervals:
    """A picture of intervals: rows on one axis, in groups."""

    title: str
    unit: str
    groups: Sequence[tuple[str, tuple[str, str], Sequence[DrawnBar]]]
    """The heading, where what counts as none begins there and how wide that is, and the rows."""
    ticks: Sequence[Tick]
    zero: str
    note: str


@frozen
class BentAxis:
    """An axis that is linear up to ``near`` on both sides of 0, and logarithmic far from it."""

    low: float
    high: float
    near: float

    def at(self, value: float) -> float:
        """Return where a value lies: 0 at ``low``, 1 at ``high``."""
        low, high, place = (math.asinh(x / self.near) for x in (self.low, self.high, value))
        return (place - low) / (high - low)

    def ticks(self, _: int) -> list[tuple[float, str]]:
        """Return places and labels of 0 and the powers of ten that are farther than ``near``."""
        most = max(self.high, -self.low)
        first, last = math.ceil(math.log10(self.near)), math.floor(math.log10(most))
        powers = [10.0**k for k in range(first, last + 1)]
        values = [*(-p for p in reversed(powers)), 0.0, *powers]
        return [(self.at(v), f"{v:g}") for v in values if self.low <= v <= self.high]


def drawn_intervals(picture: Intervals) -> DrawnIntervals:
    """Return a picture of intervals, ready to be drawn."""
    every = [bar.interval for _, bars in picture.groups for bar in bars]
    axis = _axis(every, picture.within)
    low, zero, end = (_inside(axis.at(x)) for x in (-picture.within, 0.0, picture.within))

    def shaded(title: str) -> tuple[str, str]:
        begin = low if title in picture.both_sides else zero
        return percent(begin), percent(end - begin)

    return DrawnIntervals(
        picture.title,
        picture.unit,
        [(title, shaded(title), [_bar(b, axis) for b in bars]) for title, bars in picture.groups],
        [(percent(place), word) for place, word in axis.ticks(4)],
        percent(zero),
        f"Shaded: what counts as none, up to {picture.within:g}. Hollow: not significant by the "
        f"corrected p.{' Far from 0 the axis is logarithmic.' * isinstance(axis, BentAxis)}",
    )


def _axis(intervals: Sequence[Interval], within: float) -> Axis | BentAxis:
    means = [abs(i.mean) for i in intervals if math.isfinite(i.mean)]
    limit = max([WIDEST * max(means, default=0.0), 2 * within]) or 1.0
    ends = [x for i in intervals for x in (i.mean, i.low, i.high) if not math.isnan(x)]
    lowest = -within if any(i.low < 0 for i in intervals) else 0.0
    axis = axis_of([lowest, within, *(min(limit, max(-limit, x)) for x in ends)])
    is_far = within > 0 and FAR * max(within, median(means or [0.0])) < max(means, default=0.0)
    return BentAxis(axis.low, axis.high, within) if is_far else axis


def _bar(bar: Bar, axis: Axis | BentAxis) -> DrawnBar:
    low, high, mean = (
        _inside(axis.at(x)) for x in (bar.interval.low, bar.interval.high, bar.interval.mean)
    )
    return DrawnBar(
        bar.label, str(bar.interval), bar.is_told, percent(low), percent(high - low), percent(mean)
    )


def _inside(place: float) -> float:
    return 0.0 if math.isnan(place) else min(1.0, max(0.0, place))


@frozen
class Panel:
    """The losses of an arm over its learning rates."""

    arm: str
    best: str
    line: str
    dots: str
    chosen: str
    """Where the rate lies that was chosen."""
    diverged: Sequence[str]
    """Where rates lie at which a run diverged."""
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    description: str


@frozen
class Panels:
    """A panel for each arm, on the same axes."""

    panels: Sequence[Panel]
    note: str


def drawn_curves(picture: Curves) -> Panels:
    """Return losses over learning rates, ready to be drawn."""
    rates = sorted({rate for curve in picture.curves for rate, _ in curve.points})
    losses = [x for c in picture.curves for _, own in c.points for x in own if math.isfinite(x)]
    top = quantiles(losses, n=10)[-1] if len(losses) > 1 else math.inf
    shown = [x for x in losses if x <= top] or losses or [0.0]
    x, y = Axis(rates[0] / 1.2, rates[-1] * 1.2, is_log=True), axis_of(shown)
    note = "Lines: means over the selection seeds. Dashed: the rate that was chosen."
    if len(shown) < len(losses):
        note += f" Losses above {number(max(shown), 2)} are cut off."
    if any(x == math.inf for c in picture.curves for _, own in c.points for x in own):
        note += " ×: a run diverged."
    return Panels([_panel(curve, x, y) for curve in picture.curves if curve.points], note)


def _panel(curve: Curve, x: Axis, y: Axis) -> Panel:
    means = [(rate, fmean(own)) for rate, own in curve.points if own]
    told = ", ".join(f"{number(mean, 3)} at {factor(rate)}" for rate, mean in means)
    return Panel(
        arm=curve.arm,
        best=curve.best.text,
        line=svg.line((x.at(rate), _height(y, mean)) for rate, mean in means),
        dots=svg.dots((x.at(rate), _height(y, v)) for rate, own in curve.points for v in own),
        chosen=percent(x.at(curve.best.value)),
        diverged=[percent(x.at(rate)) for rate, own in curve.points if math.inf in own],
        x_ticks=list(_rates([rate for rate, _ in curve.points], x)),
        y_ticks=[(percent(1 - place), word) for place, word in y.ticks(3)],
        description=f"Loss of {curve.arm} over learning rate: {told}. Best: {curve.best.text}.",
    )


def _height(y: Axis, loss: float) -> float:
    return y.at(loss) if math.isfinite(loss) else math.nan


def _rates(rates: Sequence[float], x: Axis) -> Iterator[Tick]:
    """Yield the rates that have room to be written, the lowest first."""
    last = -math.inf
    for rate in rates:
        place = x.at(rate)
        if place - last >= APART:
            last = place
            yield percent(place), factor(rate)
