"""What a page on a study holds: paragraphs, lists, tables and pictures, in no format yet.

Texts have two marks, as in Markdown: **bold** and `code`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence

from attrs import evolve, field, frozen

from altcore_reporters.study_pages.words import NOT_AVAILABLE, alike


@frozen
class Interval:
    """A mean with its interval of 95 %."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return NOT_AVAILABLE
        mean, low, high = self.texts
        return f"{mean} [{low}, {high}]"

    @property
    def texts(self) -> list[str]:
        """The mean and the ends, to the same place."""
        return alike([self.mean, self.low, self.high])


@frozen
class Number:
    """A number, and how people read it."""

    value: float
    text: str

    def __str__(self) -> str:
        return self.text


Cell = str | Number | Interval
"""Empty text, or NaN, where there is nothing."""
NO_INTERVAL = Interval(math.nan, math.nan, math.nan)
NO_NUMBER = Number(math.nan, NOT_AVAILABLE)


@frozen
class Table:
    """A table; its first columns name the rows, and those of intervals end with ``[95 %]``."""

    key: str
    """Names it in other files: letters and dashes."""
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    is_data: bool = True
    """Whether its numbers are nowhere else in the document."""
    note: str = ""
    """Of its caption where it stands alone; the document's by default."""
    names: int = 1
    """How many columns name the rows."""
    more: Sequence[Mapping[str, object]] = ()
    """Further values of each row, for files that hold numbers."""

    @property
    def shown(self) -> Table:
        """The table without the columns in which there is nothing."""
        kept = [i for i in range(len(self.head)) if not all(_is_empty(r[i]) for r in self.rows)]
        rows = [[row[i] for i in kept] for row in self.rows]
        return evolve(self, head=[self.head[i] for i in kept], rows=rows)


def _is_empty(cell: Cell) -> bool:
    match cell:
        case Interval():
            return math.isnan(cell.mean)
        case Number():
            return math.isnan(cell.value)
    return not cell


@frozen
class Bullets:
    """A list of sentences."""

    items: Sequence[str]


@frozen
class Bar:
    """An interval of a picture, and what it is of."""

    label: str
    interval: Interval
    is_told: bool
    """Whether the difference is told from 0, or stated as being."""


@frozen
class Intervals:
    """A picture of intervals on one axis, in groups with headings."""

    title: str
    unit: str
    groups: Sequence[tuple[str, Sequence[Bar]]]
    within: float
    """Gaps up to here count as none."""
    both_sides: Collection[str] = ()
    """The groups in which what is as far below 0 counts as none, too, by their headings."""


@frozen
class Curve:
    """The losses of an arm over its learning rates."""

    arm: str
    points: Sequence[tuple[float, Sequence[float]]]
    """Each rate, and its losses; infinite if a run diverged."""
    best: Number


@frozen
class Curves:
    """A picture of losses over learning rates, a panel for each arm."""

    key: str
    curves: Sequence[Curve]


Part = str | Bullets | Table | Intervals | Curves
"""A text is a paragraph. Pictures show what tables say, too."""


@frozen
class Section:
    """A heading, and what is under it; the first section has the document's title."""

    title: str
    parts: Sequence[Part] = field(converter=tuple)


@frozen
class Document:
    """A page on an answer."""

    name: str
    """Of its files."""
    facts: Mapping[str, object]
    """Of all its numbers: the study, the loss that is compared, versions."""
    note: str
    """What intervals are of, for a table that stands alone."""
    sections: Sequence[Section] = field(converter=tuple)
    repeat: Sequence[tuple[str, str]] = ()
    """What it takes to repeat the study: each fact with its name."""

    @property
    def parts(self) -> Iterator[Part]:
        """All that is under its headings."""
        return (part for section in self.sections for part in section.parts)
