"""What a page on a study holds: paragraphs, lists, tables and pictures, in no format yet.

Texts have two marks, as in Markdown: **bold** and `code`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attrs import field, frozen

from altcore_reporters.study_pages.words import number


@frozen
class Interval:
    """A mean with its interval of 95 %."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{number(self.mean)} [{number(self.low)}, {number(self.high)}]"


@frozen
class Number:
    """A number, and how people read it."""

    value: float
    text: str

    def __str__(self) -> str:
        return self.text


Cell = str | Number | Interval
"""Empty text where there is nothing."""


@frozen
class Table:
    """A table; its first columns name the rows."""

    key: str
    """Names it in other files: letters and dashes."""
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    is_data: bool = True
    """Whether its numbers are nowhere else in the document."""


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
    """Differences up to here count as none."""


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
    note: str
    """What intervals are of, for a table that stands alone."""
    sections: Sequence[Section] = field(converter=tuple)

    @property
    def parts(self) -> Iterator[Part]:
        """All that is under its headings."""
        return (part for section in self.sections for part in section.parts)
