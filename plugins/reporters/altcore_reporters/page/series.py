"""The series of plots: one for each configuration, or for each run if there are too many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from altcore_reporters.page.plots import COLOURS, DASHES, LABELLED, Look, Series
from altcore_reporters.pictures import (
    POINTS,
    Group,
    band_of,
    curve_of,
    marks_of,
    smoothed,
    thinned,
)

if TYPE_CHECKING:
    from altcore.plugin import RunRecord

BUDGET, FEWEST = 60_000, 100
"""Points of all curves of a plot, and the fewest of one."""
SMOOTH_FROM, WINDOW = 100, 40
"""Points from which a noisy curve gets running means, each over one part of so many."""


@frozen
class Drawing:
    """Makes the series of a key, for all runs."""

    groups: Sequence[Group]
    looks: Sequence[Look]

    @property
    def limit(self) -> int:
        """The most points of a curve."""
        runs = sum(len(group.records) for group in self.groups)
        return max(FEWEST, min(POINTS, BUDGET // runs))

    @property
    def has_bands(self) -> bool:
        """Whether runs that differ in their seed only are one band."""
        return len(self.groups) <= LABELLED

    def __call__(
        self, key: str, *, has_dots: bool = False, has_marks: bool = False, is_smooth: bool = False
    ) -> list[Series]:
        """Return the series of a key of the metrics."""
        found = []
        for i, (group, look) in enumerate(zip(self.groups, self.looks, strict=True)):
            several = [group.records] if self.has_bands else [[r] for r in group.records]
            for records in several:
                label = group.label
                if len(records) < len(group.records):
                    label += f", {records[0].name}"
                marks = [m for r in records for m in marks_of(r)] if has_marks else []
                made = series_of(records, key, self.limit, is_smooth=is_smooth and self.has_bands)
                found.append(
                    evolve(made, label=label, look=look, group=i, has_dots=has_dots, marks=marks)
                )
        return found


def series_of(
    records: Sequence[RunRecord], key: str, limit: int, *, is_smooth: bool = False
) -> Series:
    """Return the curve of one run, or the band of several, for a key of the metrics."""
    whole = curve_of(records[0], key, None)
    number = len(whole.values)
    window = window_of(number) if is_smooth else 1
    if len(records) > 1:
        band = band_of(records, key, limit, window)
        return Series("", Look(), band.steps, band.means, band.lows, band.highs)
    kept = thinned(whole.values, limit)
    made = Series("", Look(), [whole.steps[i] for i in kept], [whole.values[i] for i in kept])
    if window == 1:
        return made
    means = smoothed(whole.values, window)
    kept = thinned(means, limit // 2)
    return evolve(made, smooth=([whole.steps[i] for i in kept], [means[i] for i in kept]))


def window_of(points: int) -> int:
    """Return over how many of a noisy curve's points means are taken."""
    return points // WINDOW if points >= SMOOTH_FROM else 1


def looks_of(groups: Sequence[Group]) -> list[Look]:
    """Return a look for each group.

    Each has its own colour, or if there are too many, that of its format, and dashes by the rest
    of what sets it apart.
    """
    if len(groups) <= COLOURS:
        return [Look(i) for i in range(len(groups))]
    formats = [str(g.records[0].summary.get("format")) for g in groups]
    known = list(dict.fromkeys(formats))
    if not 1 < len(known) <= COLOURS:
        return [Look()] * len(groups)
    rest = [tuple(v for k, v in g.values.items() if k != "format") for g in groups]
    others = list(dict.fromkeys(rest))
    has_dashes = len(others) <= DASHES and len(groups) <= LABELLED
    return [
        Look(known.index(f), others.index(r) if has_dashes else 0)
        for f, r in zip(formats, rest, strict=True)
    ]
