"""What a page shows: chosen from the records, and ready for the template."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen

from altcore.plugin import METRICS, problems_of
from altcore_reporters.page import tables
from altcore_reporters.page.axes import Axis, steps_axis
from altcore_reporters.page.heat import Heat, heat_of
from altcore_reporters.page.plots import LABELLED, Look, Plot, plot_of
from altcore_reporters.page.series import Drawing, looks_of, series_of, window_of
from altcore_reporters.page.slopes import Still, fits_of_runs, slope_plots, spectrum
from altcore_reporters.page.values import Bars, bars_of
from altcore_reporters.page.verdict import (
    UNFINISHED,
    Figure,
    Verdict,
    figures_of_run,
    figures_of_runs,
    verdict_of_run,
    verdict_of_runs,
)
from altcore_reporters.pictures import POINTS, Group, grouped, heat_maps, marks_of, value_histograms

if TYPE_CHECKING:
    from altcore.plugin import RunRecord

TALL = 6
"""Labels beside a tall plot."""
DIVERGED = 1.5
"""Losses above so many times the first one are cut off."""

RATES = (
    ("stored_stall_rate", "Stalled updates of stored weights", "share of nonzero updates"),
    (
        "view_stall_rate",
        "Stalled views of master weights",
        "share of nonzero updates; late, not lost",
    ),
    ("overflow_rate", "Overflow", "share of quantized values"),
    ("flushed_rate", "Flushed to zero", "share of quantized values"),
)
WHY_NOT = {
    "stored_stall_rate": "no weights are stored on a grid",
    "view_stall_rate": "no float32 master weights are quantized",
    "overflow_rate": "every scale follows the largest magnitude, so nothing can overflow",
    "flushed_rate": "nothing is quantized",
}
"""Why the core has no such rate."""
LAYERED = 24
"""Most configurations that are shown layer by layer."""
STILL = 300.0
"""Seconds without a line after which a run is not taken to go on."""
LAYERS_BY = "bit-stall, ulp-stats and shadow"
"""The plugins that measure by layer."""
NO_BLOCKS = (
    "Activations and gradients over the format's values: value-histogram leaves out those with "
    "a scale for each block or channel, since the scales are not kept."
)


@frozen
class Contents:
    """A page."""

    title: str
    verdict: Verdict
    problems: Sequence[str]
    """What is wrong with the records of the runs."""
    figures: Sequence[Figure]
    plots: Sequence[Plot]
    lead: str
    """What their lines are."""
    legend: Sequence[tuple[str, Look, int]]
    """Label, look and index of each group, if there are several."""
    mark_kinds: Sequence[tuple[str, str]]
    """The kinds of marks that are drawn, and what they mean."""
    heats: Sequence[tuple[str, Sequence[Heat]]]
    """Heat maps, by run."""
    values: Sequence[Bars]
    """Histograms over a format's values, of one run."""
    stills: Sequence[Still]
    """Pictures with axes of their own."""
    missing: Sequence[str]
    """What was not measured."""
    configurations: tables.Table | None
    runs: tables.Table | None
    differences: tables.Table | None
    events: tables.Table | None
    findings: Sequence[tuple[str, Sequence[Any]]]
    """By plugin, lines and rows."""
    configuration: tables.Table | None
    provenance: tables.Table
    command: str
    repeat: tables.Repeat
    reports: Sequence[str]
    room: float
    """Width of the labels beside the curves, in rem."""
    is_running: bool
    """Whether a run goes on, so that browsers load the page again."""


def contents_of(records: Sequence[RunRecord]) -> Contents:
    """Choose what a page on these runs shows."""
    groups = grouped(records)
    is_one = len(records) == 1
    first = records[0]
    looks = looks_of(groups)
    plots, missing = _plots(records, groups, looks)
    heats, undrawn = _heats(groups)
    values, unmeasured = _values(records)
    missing += undrawn + unmeasured
    kinds = {glyph.kind for plot in plots for glyph in plot.glyphs}
    return Contents(
        title=first.name if is_one else f"{len(records)} runs",
        verdict=verdict_of_run(first) if is_one else verdict_of_runs(groups),
        problems=problems_of(records),
        figures=figures_of_run(first) if is_one else figures_of_runs(groups),
        plots=plots,
        lead=_lead(records, groups),
        legend=[] if is_one else _legend(groups, looks),
        mark_kinds=[(k, word) for k, word in tables.MARKS.items() if k in kinds],
        heats=heats,
        values=values,
        stills=[s for s in (spectrum(first) if is_one else fits_of_runs(records),) if s],
        missing=missing,
        configurations=tables.configurations_table(groups, looks),
        runs=None if is_one else tables.runs_table(groups, looks),
        differences=None if is_one else tables.differences_table(records),
        events=tables.events_table(records),
        findings=list((first.summary.get("findings") or {}).items()) if is_one else [],
        configuration=tables.configuration_table(first.config) if is_one and first.config else None,
        provenance=tables.provenance(first),
        command=tables.command_of(first) if is_one else "",
        repeat=tables.repeat_of(records),
        reports=[r for r in first.reports if r.endswith(".md")] if is_one else [],
        room=_room(plots),
        is_running=any(map(is_running, records)),
    )


def _values(records: Sequence[RunRecord]) -> tuple[list[Bars], list[str]]:
    """Return the histograms over a format's values, and which of them there are not."""
    if len(records) > 1:
        return [], ["Values on the format's grid: only the page of one run draws them."]
    (record,) = records
    pictures = value_histograms(record)
    found = [bars for bars in map(bars_of, pictures) if bars is not None]
    if not record.config.get("format"):
        return found, []
    roles = {picture.operand.partition("@")[0] for picture in pictures}
    is_measured = any(picture.source == "measured" for picture in pictures)
    if is_measured and not {"activation", "gradient"} & roles:
        return found, [NO_BLOCKS]
    if is_measured:
        return found, []
    what = "Activations and gradients" if found else "Weights, activations and gradients"
    return found, [f"{what} over the format's values: the plugin value-histogram measures them."]


def _heats(groups: Sequence[Group]) -> tuple[list[tuple[str, list[Heat]]], list[str]]:
    """Return the heat maps of the first run of each configuration, or why there are none."""
    if len(groups) > LAYERED:
        return [], [
            f"Layers by steps: they are drawn for at most {LAYERED} configurations, and these are "
            f"{len(groups)}. Choose runs: altcore report page RUN RUN."
        ]
    found = []
    for group in groups:
        record = group.records[0]
        of = f"{group.label}, {record.name}" if len(groups) > 1 else record.name
        found.append((of, [heat_of(picture) for picture in heat_maps(record)]))
    drawn = [(of, pictures) for of, pictures in found if pictures]
    return drawn, [] if drawn else [f"Layers by steps: the plugins {LAYERS_BY} measure them."]


def _plots(
    records: Sequence[RunRecord], groups: Sequence[Group], looks: Sequence[Look]
) -> tuple[list[Plot], list[str]]:
    """Return the plots, which share the axis of steps, and why some are not there."""
    steps = [line["step"] for r in records for line in (*r.metrics[:1], *r.metrics[-1:])]
    if not steps:
        return [], ["Nothing was recorded."]
    x, unit = steps_axis([min(steps), max(steps)]), _unit(records)
    draw = Drawing(groups, looks)
    if len(records) == 1:
        found = [_loss_of_one(records[0], x, unit)]
    else:
        val, loss = draw("val_loss", has_dots=True), draw("loss", has_marks=True, is_smooth=True)
        top, level = _top(records, "val_loss"), _entropy(records)
        found = [
            plot_of("val", "Validation loss", unit, val, x, top=top, level=level, height=TALL),
            plot_of("loss", "Training loss", unit, loss, x, top=_top(records, "loss"), height=TALL),
        ]
    missing = []
    for key, title, what in RATES:
        plot = plot_of(key, title, what, draw(key), x, is_share=True)
        if plot is None:
            missing.append(f"{title}: {WHY_NOT[key]}.")
        found.append(plot)
    norm = draw("grad_norm", is_smooth=True)
    if len(records) == 1:
        found += slope_plots(records[0], x)
    found.append(plot_of("grad_norm", "Gradient norm", "before clipping", norm, x, may_be_log=True))
    return [plot for plot in found if plot is not None], missing


def _lead(records: Sequence[RunRecord], groups: Sequence[Group]) -> str:
    """Say what the lines are, where they are not the values themselves."""
    if len(groups) > LABELLED:
        return ""
    parts = []
    if len(groups) < len(records):
        parts.append("Lines are means over seeds; bands reach from the lowest to the highest run.")
    window = window_of(max(len(record.steps) for record in records))
    if window > 1:
        of = "Loss" if len(records) == 1 else "Training loss"
        tables = "the tables have the recorded values"
        if len(groups) < len(records):
            tables = "so are the tables of bands; those of single runs have the recorded values"
        means = f"running means over {window} recorded steps"
        parts.append(f"{of} and gradient norm are {means}; {tables}.")
    return " ".join(parts)


def _loss_of_one(record: RunRecord, x: Axis, unit: str) -> Plot | None:
    training = series_of([record], "loss", POINTS, is_smooth=True)
    validation = series_of([record], "val_loss", POINTS)
    series = [
        evolve(training, label="training", marks=marks_of(record)),
        evolve(validation, label="validation", look=Look(0), has_dots=True, group=1),
    ]
    top, level = _top([record], "loss"), _entropy([record])
    return plot_of("loss", "Loss", unit, series, x, top=top, level=level, height=TALL)


def _legend(groups: Sequence[Group], looks: Sequence[Look]) -> list[tuple[str, Look, int]]:
    """Return label, look and index of each group, or, if they are too many, of each format."""
    if len(groups) <= LABELLED:
        return [(g.label, look, i) for i, (g, look) in enumerate(zip(groups, looks, strict=True))]
    by_format = {
        str(g.records[0].summary.get("format")): look for g, look in zip(groups, looks, strict=True)
    }
    return [(f, look, -1) for f, look in by_format.items()] if looks[0].colour is not None else []


def _room(plots: Sequence[Plot]) -> float:
    longest = max((len(series.label) for plot in plots for _, series in plot.labels), default=0)
    return min(14.0, 2.2 + 0.46 * longest) if longest else 0.0


def is_running(record: RunRecord) -> bool:
    """Whether a run goes on: it is not over, and its record grew a short time ago."""
    if record.summary.get("status") != UNFINISHED or record.directory is None:
        return False
    try:
        return time.time() - (record.directory / METRICS).stat().st_mtime < STILL
    except OSError:
        return False


def _unit(records: Sequence[RunRecord]) -> str:
    item = records[0].summary.get("item")
    return f"per {item[:-1]}" if isinstance(item, str) and item.endswith("s") else ""


def _entropy(records: Sequence[RunRecord]) -> tuple[float, str] | None:
    found = {(r.summary.get("workload_facts") or {}).get("unigram_entropy") for r in records}
    value = found.pop() if len(found) == 1 else None
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value), "unigram entropy"


def _top(records: Sequence[RunRecord], key: str) -> float | None:
    """Return where losses are cut off, so that one that diverged hides no other."""
    firsts = [
        line[key]
        for r in records
        for line in [next((x for x in r.metrics if isinstance(x.get(key), int | float)), None)]
        if line is not None and math.isfinite(line[key])
    ]
    return DIVERGED * max(firsts) if firsts and max(firsts) > 0 else None
