"""Histograms over a format's values, ready to be drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from attrs import frozen

from altcore_reporters.page import svg
from altcore_reporters.page.plots import percent
from altcore_reporters.page.words import share
from altcore_reporters.pictures import ValueHistogram

WORDS = {
    "stored_weight": "Stored weights",
    "weight": "Weights",
    "activation": "Activations",
    "gradient": "Gradients of outputs",
    "weight_gradient": "Weight gradients",
}
ROOM = 1.0
"""Binades beside what is shown."""
TICKS = 6
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@frozen
class Bars:
    """A histogram, ready to be drawn."""

    title: str
    about: str
    """The format, the operand and the step."""
    path: str
    rug: str
    """Lines at the format's values."""
    flushed: str
    """Up to where values round to zero, in percent; empty if none does, or it is not known."""
    beyond: str
    """From where values are beyond the largest, in percent; empty if that is not known."""
    ticks: Sequence[tuple[str, str]]
    note: str
    rows: Sequence[tuple[str, Sequence[str]]]
    """The table behind it."""

    @property
    def description(self) -> str:
        """The picture in a sentence."""
        return (
            f"Histogram of magnitudes: {self.title}, {self.about}. {self.note} The table follows."
        )


def bars_of(picture: ValueHistogram) -> Bars | None:
    """Return a histogram to be drawn; None if no bin holds anything."""
    met = [i for i, s in enumerate(picture.shares) if s > 0]
    if not met:
        return None
    low, high = picture.edges[met[0]], picture.edges[met[-1] + 1]
    grid = [math.log2(v) for v in picture.values]
    flushed, beyond = picture.flushed, None
    if grid:
        beyond = grid[-1]
        # All values, unless that would leave what was measured a small part of the picture.
        low = max(min(low, grid[0]), low - (high - low) - 4)
        high = max(high, grid[-1])
    low, high = low - ROOM, high + ROOM

    def at(x: float) -> float:
        return (x - low) / (high - low)

    first, last = met[0], met[-1] + 1
    # Bins differ in width: it is the area that shows a share.
    widths = [b - a for a, b in pairwise(picture.edges[first : last + 1])]
    heights = [s / w for s, w in zip(picture.shares[first:last], widths, strict=True)]
    top = max(heights) / 0.94
    role = picture.operand.partition("@")[0]
    source = "in the checkpoint of" if picture.source == "checkpoint" else "at"
    return Bars(
        title=WORDS.get(role, picture.operand),
        about=f"{picture.format}, {source} step {picture.step}",
        path=svg.bars([at(e) for e in picture.edges[first : last + 1]], [h / top for h in heights]),
        rug=svg.rules(sorted({round(at(g), 4) for g in grid if g >= low})),
        flushed=percent(at(flushed)) if flushed is not None and flushed > low else "",
        beyond=percent(at(beyond)) if beyond is not None else "",
        ticks=[(percent(at(e)), f"2{str(e).translate(SUPERSCRIPT)}") for e in _powers(low, high)],
        note=_note(picture, beyond),
        rows=list(_rows(picture)),
    )


def _note(picture: ValueHistogram, beyond: float | None) -> str:
    parts = [f"{share(picture.zeros)} are zero" if picture.zeros else "none is zero"]
    if beyond is None:
        parts.append(f"the values of {picture.format} are not known here")
    else:
        pairs = list(zip(picture.edges[1:], picture.shares, strict=True))
        flushed = picture.flushed
        lost = sum(s for upper, s in pairs if flushed is not None and upper <= flushed)
        lost += picture.below if flushed is not None else 0.0
        over = picture.above + sum(
            s for lower, s in zip(picture.edges, picture.shares, strict=False) if lower > beyond
        )
        if lost:
            parts.append(f"{share(lost)} round to zero")
        if over:
            parts.append(f"{share(over)} are beyond the largest value")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _rows(picture: ValueHistogram) -> list[tuple[str, list[str]]]:
    rows = [("zero", [share(picture.zeros)])]
    if picture.below:
        rows.append((f"below {_power(picture.edges[0])}", [share(picture.below)]))
    bins = range(0, len(picture.shares), 2)
    for i in bins:
        own = sum(picture.shares[i : i + 2])
        if own:
            upper = picture.edges[min(i + 2, len(picture.shares))]
            rows.append((f"{_power(picture.edges[i])} to {_power(upper)}", [share(own)]))
    if picture.above:
        rows.append((f"above {_power(picture.edges[-1])}", [share(picture.above)]))
    return rows


def _power(edge: float) -> str:
    if edge == round(edge):
        return f"2{str(round(edge)).translate(SUPERSCRIPT)}"
    return f"1.5·2{str(math.floor(edge)).translate(SUPERSCRIPT)}"


def _powers(low: float, high: float) -> list[int]:
    each = max(1, math.ceil((high - low) / TICKS))
    return [e for e in range(math.ceil(low), math.floor(high) + 1) if e % each == 0]
