"""Pictures of runs as matplotlib figures, of the same numbers as the page's.

Runs are given as records, as what `altcore.train` or `altcore.load` returned, or as the paths of
their directories; one, or several. A notebook shows a figure that is returned; `Figure.savefig`
writes it to a file.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve
from matplotlib import colors, figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from altcore.plugin import BadInput, RunRecord, read_run
from altcore_reporters.page.axes import LOG_RATIO
from altcore_reporters.page.contents import DIVERGED, RATES
from altcore_reporters.page.plots import Look, Series
from altcore_reporters.page.series import Drawing, looks_of
from altcore_reporters.page.values import bars_of
from altcore_reporters.pictures import (
    LAYER_MEASURES,
    POINTS,
    ValueHistogram,
    grouped,
    heat_map,
    value_histograms,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PALETTE = (
    *("#2e61d4", "#d87014", "#43a093", "#730a43"),
    *("#b578e5", "#ad423d", "#3b3096", "#805d93"),
)
"""The page's colours, which colour-blind people tell apart."""
GREY = "#7d838a"
DASHES = ("-", "--", ":", "-.")
LABELS = {
    "loss": "training loss",
    "val_loss": "validation loss",
    **{key: title.lower() for key, title, _ in RATES},
    "grad_norm": "gradient norm",
}
"""What measures are called, in the order in which `curves` shows them."""
SHARES = tuple(key for key, _, _ in RATES)
"""Measures whose axes begin at 0 and are in percent."""
NOISY = ("loss", "grad_norm")
"""Measures that get running means."""
LINE = 96
"""Characters of a line of the legend."""
MARKS = {"nan": "x", "shift": "D", "rollback": "<", "collapse": "v", "stop": "s"}
"""The sign of each kind of mark."""


class Figure(figure.Figure):
    """A figure that a notebook shows, also one that never imported pyplot."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=90)
        return file.getvalue()


def curves(runs: Any, keys: Sequence[str] | None = None) -> Figure:
    """Draw measures over steps, each on an axis of its own below the one before.

    Runs that differ in nothing but their seed are one band about their mean. What happened is
    marked on the training loss.

    Args:
        runs: one or several; see the module.
        keys: of metrics.jsonl, plugins' measures included; if None, the losses, rates and the
            gradient's norm that any of the runs has.

    Raises:
        BadInput: if no run has recorded any of the keys.
    """
    records = records_of(runs)
    groups = grouped(records)
    draw = Drawing(groups, looks_of(groups))
    drawn = {
        key: [s for s in draw(key, has_marks=key == "loss", is_smooth=key in NOISY) if s.steps]
        for key in (LABELS if keys is None else keys)
    }
    drawn = {key: series for key, series in drawn.items() if series}
    if keys is None and len(records) == 1 and {"loss", "val_loss"} <= set(drawn):
        # Of one run they tell more side by side.
        (training,), (validation,) = drawn["loss"], drawn.pop("val_loss")
        looks = evolve(training, label="training"), evolve(validation, label="validation")
        drawn["loss"] = [looks[0], evolve(looks[1], look=Look(1))]
    if not drawn:
        raise BadInput(f"no run has recorded {', '.join(LABELS if keys is None else keys)}")
    made = Figure(figsize=(8.0, 0.6 + 2.1 * len(drawn)), layout="constrained")
    axes = made.subplots(len(drawn), sharex=True, squeeze=False)[:, 0]
    for (key, series), ax in zip(drawn.items(), axes, strict=True):
        for one in series:
            _draw(ax, one)
        _finish(ax, key, series)
    axes[-1].set_xlabel("step")
    handles, labels = axes[0].get_legend_handles_labels()
    if len(labels) > 1:
        columns = max(1, min(len(labels), LINE // (6 + max(map(len, labels)))))
        made.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False)
    return made


def heat_maps(run: Any, measures: Iterable[str] | None = None) -> Figure:
    """Draw measures of layers over steps, a heat map each.

    Args:
        run: one; see the module.
        measures: such as ``ulp-stats/stored_mean``; if None, all of `LAYER_MEASURES` there are.

    Raises:
        BadInput: if the run has none of them.
    """
    (record,) = records_of([run])
    asked = list(LAYER_MEASURES if measures is None else measures)
    found = [picture for name in asked if (picture := heat_map(record, name)) is not None]
    if not found:
        raise BadInput(
            f"{record.name} has measured no layers", hint=f"asked for {', '.join(asked)}"
        )
    heights = [0.9 + 0.2 * len(picture.layers) for picture in found]
    made = Figure(figsize=(8.0, sum(heights)), layout="constrained")
    axes = made.subplots(len(found), squeeze=False, height_ratios=heights)[:, 0]
    for picture, ax in zip(found, axes, strict=True):
        low, high = picture.range
        is_log = 0 < low * LOG_RATIO < high
        norm = colors.LogNorm(low, high) if is_log else colors.Normalize(min(low, 0.0), high)
        image = ax.imshow(
            picture.values, aspect="auto", interpolation="nearest", cmap="cividis", norm=norm
        )
        ticks = range(0, len(picture.steps), max(1, len(picture.steps) // 6))
        ax.set_xticks(list(ticks), [str(picture.steps[i]) for i in ticks])
        ax.set_yticks(range(len(picture.layers)), list(picture.layers), fontsize="x-small")
        ax.set_title(picture.title, fontsize="medium", loc="left")
        ax.set_xlabel("step")
        made.colorbar(image, ax=ax, pad=0.01)
    return made


def values(run: Any) -> Figure:
    """Draw where the magnitudes of tensors lie among the values of their format.

    Of the diagnostic ``value-histogram``, if it was in the run, or else of the newest checkpoint's
    weights. What rounds to zero and what is beyond the largest value is shaded.

    Raises:
        BadInput: if nothing is known of the run's tensors.
    """
    (record,) = records_of([run])
    found = [(p, bars) for p in value_histograms(record) if (bars := bars_of(p)) is not None]
    if not found:
        raise BadInput(
            f"nothing is known of the tensors of {record.name}",
            hint="the plugin value-histogram measures them",
        )
    made = Figure(figsize=(8.0, 0.3 + 1.9 * len(found)), layout="constrained")
    axes = made.subplots(len(found), squeeze=False)[:, 0]
    for (picture, bars), ax in zip(found, axes, strict=True):
        _draw_values(ax, picture)
        ax.set_title(f"{bars.title}, {bars.about}", fontsize="medium", loc="left")
        ax.set_xlabel(bars.note, fontsize="small", loc="left")
    return made


def records_of(runs: Any) -> list[RunRecord]:
    """Return the records of runs that are given in any of the ways that the module names."""
    is_one = isinstance(runs, RunRecord | str | Path) or hasattr(runs, "summary")
    found = [_record_of(run) for run in ([runs] if is_one else runs)]
    if not found:
        raise BadInput("there are no runs to draw")
    return found


def _record_of(given: Any) -> RunRecord:
    if isinstance(given, RunRecord):
        return given
    return read_run(Path(given if isinstance(given, str | Path) else given.summary["directory"]))


def _draw(ax: Axes, series: Series) -> None:
    colour, dash = _colour(series.look), DASHES[series.look.dash % len(DASHES)]
    few = {"marker": "o", "markersize": 3} if len(series.steps) < POINTS // 20 else {}
    if series.highs:
        ax.fill_between(series.steps, series.lows, series.highs, color=colour, alpha=0.2, lw=0)
    if series.smooth is not None:
        ax.plot(series.steps, series.values, color=colour, alpha=0.3, lw=0.8)
        steps, means = series.smooth
        ax.plot(steps, means, dash, color=colour, lw=1.5, label=series.label)
    else:
        ax.plot(series.steps, series.values, dash, color=colour, lw=1.5, label=series.label, **few)
    finite = [(s, v) for s, v in zip(series.steps, series.values, strict=True) if math.isfinite(v)]
    for mark in series.marks if finite else ():
        # A loss that is not finite has no height: the nearest one that is stands for it.
        _, height = min(finite, key=lambda point: abs(point[0] - mark.step))
        ax.plot(mark.step, height, MARKS[mark.kind], color=colour, markersize=6)


def _finish(ax: Axes, key: str, series: Sequence[Series]) -> None:
    known = [v for one in series for v in one.values if math.isfinite(v)]
    if key in SHARES:
        ax.set_ylim(bottom=0.0)
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    elif key == "grad_norm" and known and 0 < min(known) * LOG_RATIO < max(known):
        ax.set_yscale("log")
    first = max((one.values[0] for one in series), default=math.nan)
    if key in ("loss", "val_loss") and 0 < first * DIVERGED < max(known, default=0.0):
        ax.set_ylim(top=first * DIVERGED)
    ax.set_ylabel(LABELS.get(key, key), fontsize="small")
    ax.grid(alpha=0.3, lw=0.5)
    ax.spines[["top", "right"]].set_visible(False)


def _draw_values(ax: Axes, picture: ValueHistogram) -> None:
    widths = [b - a for a, b in pairwise(picture.edges)]
    heights = [s / w for s, w in zip(picture.shares, widths, strict=True)]
    ax.stairs(heights, picture.edges, fill=True, color=PALETTE[0], alpha=0.8)
    met = [i for i, share in enumerate(picture.shares) if share > 0]
    low, high = picture.edges[met[0]], picture.edges[met[-1] + 1]
    if grid := [math.log2(v) for v in picture.values]:
        top = max(heights)
        ax.vlines(grid, -0.12 * top, -0.02 * top, color="black", lw=0.5)
        # All values, unless that would leave what was measured a small part of the picture.
        low = max(min(low, grid[0] - 1), low - (high - low) - 4)
        high = max(high, grid[-1])
        ax.axvspan(low - 1, max(low - 1, grid[0] - 1), color=PALETTE[1], alpha=0.15, lw=0)
        ax.axvspan(grid[-1], high + 1, color=PALETTE[5], alpha=0.15, lw=0)
    ax.set_xlim(low - 1, high + 1)
    ax.set_yticks([])
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.xaxis.set_major_formatter(lambda edge, _: f"$2^{{{edge:g}}}$")
    ax.spines[["top", "right", "left"]].set_visible(False)


def _colour(look: Look) -> str:
    return GREY if look.colour is None else PALETTE[look.colour % len(PALETTE)]
