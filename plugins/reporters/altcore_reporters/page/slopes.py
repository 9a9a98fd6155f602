"""What the diagnostics loss-slope, noise and curvature measured, as pictures.

Over the steps: mean losses with the early slope and the power law, and the curvature. On axes of
their own: the spectrum of the loss, and, of several runs, how well the power law fits them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import frozen

from altcore_reporters.page import svg
from altcore_reporters.page.axes import Axis, axis_of
from altcore_reporters.page.plots import Look, Plot, Series, percent, plot_of
from altcore_reporters.page.words import number, share

if TYPE_CHECKING:
    from altcore.plugin import RunRecord

POINT, EPOCH, R_SQUARED = "loss-slope/point_loss", "loss-slope/epoch_loss", "loss-slope/r_squared"
AMPLITUDE, EXPONENT = "loss-slope/power_law_amplitude", "loss-slope/power_law_slope"
KNEE = "loss-slope/knee_epoch"
ALPHA = re.compile(r"loss-slope/alpha_(\d+)_(\d+)")
CURVE = 60
"""Points of a fitted curve."""
ROWS = 8
"""Of the table behind a spectrum."""
LEAST = 8
"""Losses without which no spectrum is drawn."""
BINS = 20


@frozen
class Still:
    """A picture with an axis of its own, ready to be drawn."""

    key: str
    title: str
    about: str
    path: str
    is_line: bool
    """Whether the path is a line, and no outline of bars."""
    x_ticks: Sequence[tuple[str, str]]
    y_ticks: Sequence[tuple[str, str]]
    level: str
    """Where a limit is, in percent from the left; empty without one."""
    note: str
    head: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]

    @property
    def description(self) -> str:
        """The picture in a sentence."""
        return f"{self.title}, {self.about}. {self.note} The table follows."


def slope_plots(record: RunRecord, x: Axis) -> list[Plot | None]:
    """Return the plots over steps of one run; None for what was not measured."""
    return [
        _fits(record, x),
        _plot(record, x, "lambda_max", "Largest eigenvalue of the Hessian", "unquantized model"),
        _plot(record, x, "hutchinson_trace", "Trace of the Hessian", "estimated; unquantized"),
    ]


def _fits(record: RunRecord, x: Axis) -> Plot | None:
    """Return the mean losses, with the lines that were fitted to them."""
    steps, means = _course(record.metrics, POINT)
    if not steps:
        return None
    each = _steps_per_epoch(record)
    series = [Series("mean loss", Look(0), steps, means, has_dots=True)]
    if each:
        series += _law(record.metrics, each)
        series += _early(record.metrics, each)
    unit = "; ".join(["means of steps", *_told(record.metrics)])
    return plot_of("loss-slope", "Mean loss and its fits", unit, series, x, may_be_log=True)


def _steps_per_epoch(record: RunRecord) -> float | None:
    """Return the steps of an epoch, also of a run whose length was given in steps."""
    if each := record.config.get("steps_per_epoch"):
        return float(each)
    counted = (x for x in reversed(record.metrics) if x.get("epoch"))
    return next((x["step"] / x["epoch"] for x in counted), None)


def _told(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the figures of the fits."""
    exponent, r = _last(lines, EXPONENT), _last(lines, R_SQUARED)
    if exponent is not None:
        yield f"power law {number(exponent)}" + ("" if r is None else f", R² {r:.3f}")
    name = _early_name(lines)
    if name is not None and (slope := _last(lines, name[0])) is not None:
        yield f"early slope {number(slope)} an epoch"


def _early_name(lines: Sequence[Mapping[str, Any]]) -> re.Match[str] | None:
    return next((m for line in reversed(lines) for m in map(ALPHA.fullmatch, line) if m), None)


def _law(lines: Sequence[Mapping[str, Any]], each: float) -> Iterator[Series]:
    """Yield the power law of the last fit, from the end of the burn-in on."""
    amplitude, exponent, knee = (_last(lines, key) for key in (AMPLITUDE, EXPONENT, KNEE))
    if amplitude is None or exponent is None or knee is None:
        return
    end = lines[-1]["step"] / each
    epochs = [knee + (end - knee) * i / (CURVE - 1) for i in range(CURVE)]
    values = [amplitude * e**exponent for e in epochs]
    yield Series("power law", Look(1), [round(e * each) for e in epochs], values, group=1)


def _early(lines: Sequence[Mapping[str, Any]], each: float) -> Iterator[Series]:
    """Yield the line of the early slope, through the mean losses of its epochs."""
    name = _early_name(lines)
    if name is None or (slope := _last(lines, name[0])) is None:
        return
    steps, means = _course(lines, EPOCH)
    known = {round(step / each): mean for step, mean in zip(steps, means, strict=True)}
    own = [e for e in range(int(name[1]), int(name[2])) if math.isfinite(known.get(e, math.nan))]
    if len(own) < 2:
        return
    middle = math.fsum(own) / len(own)
    height = math.fsum(known[e] for e in own) / len(own)
    ends = [own[0], own[-1]]
    values = [height + slope * (e - middle) for e in ends]
    # An epoch's mean stands in its middle.
    at = [round((e - 0.5) * each) for e in ends]
    yield Series("early slope", Look(2), at, values, group=2)


def _plot(record: RunRecord, x: Axis, name: str, title: str, unit: str) -> Plot | None:
    steps, values = _course(record.metrics, f"curvature/{name}")
    series = [Series(name, Look(0), steps, values, has_dots=True)] if steps else []
    return plot_of(name, title, unit, series, x)


def spectrum(record: RunRecord) -> Still | None:
    """Return the spectrum of the losses between the last two measurements of `noise`."""
    at = [line["step"] for line in record.metrics if "noise/psd_tail" in line]
    if not at:
        return None
    first = at[-2] if len(at) > 1 else 0
    losses = [
        line["loss"]
        for line in record.metrics
        if first < line["step"] <= at[-1] and math.isfinite(line.get("loss") or math.nan)
    ]
    if len(losses) < LEAST:
        return None
    frequencies, power = _periodogram(losses)
    # The mean was removed: at 0 there is what the window left of it.
    frequencies, power = frequencies[1:], power[1:]
    known = [p for p in power if p > 0]
    if not known:
        return None
    x, y = Axis(0.0, 0.5), axis_of(known, may_be_log=True)
    tail = _last(record.metrics, "noise/psd_tail")
    step = max(1, len(power) // ROWS)
    return Still(
        key="spectrum",
        title="Spectrum of the training loss",
        about=f"steps {first + 1} to {at[-1]}, power by frequency",
        path=svg.line(
            (x.at(f), y.at(p) if p > 0 else math.nan)
            for f, p in zip(frequencies, power, strict=True)
        ),
        is_line=True,
        x_ticks=[(percent(place), word) for place, word in x.ticks()],
        y_ticks=[(percent(1 - place), word) for place, word in y.ticks(4)],
        level="",
        note="Cycles a step; white noise is level."
        + ("" if tail is None else f" psd_tail is {number(tail)}."),
        head=("cycles a step", "power"),
        rows=[
            (number(f), [number(p)]) for f, p in list(zip(frequencies, power, strict=True))[::step]
        ],
    )


def _periodogram(x: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return frequencies and the power density at each, under a Hann window."""
    import numpy as np

    n = len(x)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n)
    power = np.abs(np.fft.rfft((np.asarray(x) - np.mean(x)) * window)) ** 2 / (window @ window)
    power[1 : (n + 1) // 2] *= 2
    return (np.arange(n // 2 + 1) / n).tolist(), power.tolist()


def fits_of_runs(records: Sequence[RunRecord], limit: float = 0.98) -> Still | None:
    """Return the histogram of R² of the power law over several runs; None if none was measured."""
    measured = [r for r in records if any("r_squared" in f for f in _found(r))]
    values = [f["r_squared"] for r in measured for f in _found(r) if f.get("r_squared") is not None]
    if not measured:
        return None
    low = min([0.9, *(math.floor(20 * v) / 20 for v in values)])
    edges = [low + (1 - low) * i / BINS for i in range(BINS + 1)]
    counts = [0] * BINS
    for value in values:
        counts[min(BINS - 1, int((value - low) / (1 - low) * BINS))] += 1
    x, y = Axis(low, 1.0), Axis(0.0, max(1, *counts) * 1.06, is_whole=True)
    good = sum(value >= limit for value in values)
    unfitted = len(measured) - len(values)
    told = f"{good} of {len(measured)} runs ({share(good / len(measured))}) reach {limit:g}."
    return Still(
        key="r-squared",
        title="How well a power law fits the loss",
        about="R² of each run after its burn-in",
        path=svg.bars([x.at(e) for e in edges], [c / y.high for c in counts]),
        is_line=False,
        x_ticks=[(percent(place), word) for place, word in x.ticks()],
        y_ticks=[(percent(1 - place), word) for place, word in y.ticks(4)],
        level=percent(x.at(limit)),
        note=told + (f" Not fitted: {unfitted}." if unfitted else ""),
        head=("R²", "runs"),
        rows=[
            (f"{a:.4g} to {b:.4g}", [str(count)])
            for a, b, count in zip(edges, edges[1:], counts, strict=False)
            if count
        ],
    )


def _found(record: RunRecord) -> list[Mapping[str, Any]]:
    rows = (record.summary.get("findings") or {}).get("loss-slope") or []
    return [row for row in rows if isinstance(row, Mapping)]


def _course(lines: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    found = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
    return [step for step, _ in found], [float(value) for _, value in found]


def _last(lines: Sequence[Mapping[str, Any]], key: str) -> float | None:
    return next((line[key] for line in reversed(lines) if line.get(key) is not None), None)
