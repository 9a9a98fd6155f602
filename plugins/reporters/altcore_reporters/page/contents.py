"""What a page shows: chosen from the records, and ready for the template."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attrs import frozen

from altcore_reporters.page import tables
from altcore_reporters.page.axes import Axis, steps_axis
from altcore_reporters.page.heat import Heat, heat_of
from altcore_reporters.page.plots import COLOURS, Plot, Series, plot_of
from altcore_reporters.page.verdict import (
    UNFINISHED,
    Figure,
    Verdict,
    figures_of_run,
    figures_of_runs,
    verdict_of_run,
    verdict_of_runs,
)
from altcore_reporters.pictures import (
    POINTS,
    Group,
    band_of,
    curve_of,
    grouped,
    heat_maps,
    marks_of,
)

if TYPE_CHECKING:
    from altcore.plugin import RunRecord

BUDGET, FEWEST = 60_000, 100
"""Points of all curves of a plot, and the fewest of one."""
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
LAYERS_BY = "bit-stall, ulp-stats and shadow"
"""The plugins that measure by layer."""


@frozen
class Contents:
    """A page."""

    title: str
    verdict: Verdict
    figures: Sequence[Figure]
    plots: Sequence[Plot]
    legend: Sequence[tuple[str, int | None, int]]
    """Label, colour and index of each group, if there are several."""
    mark_kinds: Sequence[tuple[str, str]]
    """The kinds of marks that are drawn, and what they mean."""
    heats: Sequence[tuple[str, Sequence[Heat]]]
    """Heat maps, by run."""
    missing: Sequence[str]
    """What was not measured."""
    runs: tables.Table | None
    differences: tables.Table | None
    events: tables.Table | None
    findings: Sequence[tuple[str, Sequence[Any]]]
    """By plugin, lines and rows."""
    configuration: tables.Table | None
    provenance: tables.Table
    command: str
    reports: Sequence[str]
    is_running: bool
    """Whether a run goes on, so that browsers load the page again."""


def contents_of(records: Sequence[RunRecord]) -> Contents:
    """Choose what a page on these runs shows."""
    groups = grouped(records)
    is_one = len(records) == 1
    first = records[0]
    colours = _colours(groups)
    plots, missing = _plots(records, groups, colours)
    heats = []
    if len(records) <= 6:
        heats = [(r.name, [heat_of(h) for h in heat_maps(r)]) for r in records]
        heats = [(name, found) for name, found in heats if found]
    if not heats and is_one:
        missing.append(f"Layers by steps: the plugins {LAYERS_BY} measure them.")
    kinds = {glyph.kind for plot in plots for glyph in plot.glyphs}
    return Contents(
        title=first.name if is_one else f"{len(records)} runs",
        verdict=verdict_of_run(first) if is_one else verdict_of_runs(records, groups),
        figures=figures_of_run(first) if is_one else figures_of_runs(records, groups),
        plots=plots,
        legend=[] if is_one else _legend(groups, colours),
        mark_kinds=[(k, word) for k, word in tables.MARKS.items() if k in kinds],
        heats=heats,
        missing=missing,
        runs=None if is_one else tables.runs_table(groups, colours),
        differences=None if is_one else tables.differences_table(records),
        events=tables.events_table(records),
        findings=list((first.summary.get("findings") or {}).items()) if is_one else [],
        configuration=tables.configuration_table(first.config) if is_one and first.config else None,
        provenance=tables.provenance(first),
        command=tables.command_of(first) if is_one else "",
        reports=[r for r in first.reports if r.endswith(".md")] if is_one else [],
        is_running=any(r.summary.get("status") == UNFINISHED for r in records),
    )


def _plots(
    records: Sequence[RunRecord], groups: Sequence[Group], colours: dict[int, int | None]
) -> tuple[list[Plot], list[str]]:
    """Return the plots, which share the axis of steps, and which there are not."""
    steps = [line["step"] for r in records for line in (r.metrics[:1] + r.metrics[-1:])]
    if not steps:
        return [], ["Nothing was recorded."]
    x = steps_axis([min(steps), max(steps)])
    unit = _unit(records)
    draw = _Drawing(records, groups, colours)
    if len(records) == 1:
        found = [_loss_of_one(records[0], x, unit)]
    else:
        found = [
            plot_of("val", "Validation loss", unit, draw("val_loss", has_dots=True), x,
                    top=_top(records, "val_loss"), level=_entropy(records)),
            plot_of("loss", "Training loss", unit, draw("loss", has_marks=True), x,
                    top=_top(records, "loss")),
        ]  # fmt: skip
    missing = []
    for key, title, what in RATES:
        plot = plot_of(key, title, what, draw(key), x, is_share=True)
        if plot is None and key in WHY_NOT:
            missing.append(f"{title}: {WHY_NOT[key]}.")
        found.append(plot)
    found.append(
        plot_of(
            "grad_norm", "Gradient norm", "before clipping", draw("grad_norm"), x, may_be_log=True
        )
    )
    return [plot for plot in found if plot is not None], missing


class _Drawing:
    """Makes the series of a key, for all runs."""

    def __init__(
        self,
        records: Sequence[RunRecord],
        groups: Sequence[Group],
        colours: dict[int, int | None],
    ) -> None:
        self.groups, self.colours = groups, colours
        self.limit = max(FEWEST, min(POINTS, BUDGET // len(records)))

    def __call__(
        self, key: str, *, has_dots: bool = False, has_marks: bool = False
    ) -> list[Series]:
        found = []
        for i, group in enumerate(self.groups):
            colour = self.colours[i]
            if len(self.groups) <= COLOURS and len(group.records) > 1:
                band = band_of(group.records, key, self.limit // 3)
                marks = [m for r in group.records for m in marks_of(r)] if has_marks else []
                found.append(
                    Series(group.label, colour, band.steps, band.means, band.lows, band.highs,
                           has_dots=has_dots, group=i, marks=marks)
                )  # fmt: skip
                continue
            for record in group.records:
                curve = curve_of(record, key, self.limit)
                label = group.label if len(group.records) == 1 else f"{group.label}, {record.name}"
                marks = marks_of(record) if has_marks else []
                found.append(
                    Series(label, colour, curve.steps, curve.values, has_dots=has_dots, group=i, marks=marks)
                )  # fmt: skip
        return found


def _loss_of_one(record: RunRecord, x: Axis, unit: str) -> Plot | None:
    training, validation = curve_of(record, "loss"), curve_of(record, "val_loss")
    series = [
        Series("training", None, training.steps, training.values, marks=marks_of(record)),
        Series("validation", 0, validation.steps, validation.values, has_dots=True),
    ]
    return plot_of(
        "loss", "Loss", unit, series, x, top=_top([record], "loss"), level=_entropy([record])
    )


def _colours(groups: Sequence[Group]) -> dict[int, int | None]:
    """Return a colour for each group: its own, or if there are too many, that of its format."""
    if len(groups) <= COLOURS:
        return {i: i for i in range(len(groups))}
    formats = [str(g.records[0].summary.get("format")) for g in groups]
    known = list(dict.fromkeys(formats))
    if 1 < len(known) <= COLOURS:
        return {i: known.index(f) for i, f in enumerate(formats)}
    return dict.fromkeys(range(len(groups)))


def _legend(
    groups: Sequence[Group], colours: dict[int, int | None]
) -> list[tuple[str, int | None, int]]:
    if len(groups) <= COLOURS:
        return [(group.label, colours[i], i) for i, group in enumerate(groups)]
    formats = [str(g.records[0].summary.get("format")) for g in groups]
    first = {f: i for i, f in reversed(list(enumerate(formats)))}
    if len(first) > COLOURS:
        return []
    return [(f, colours[i], -1) for f, i in sorted(first.items(), key=lambda item: item[1])]


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
