"""What a page on a study holds: sections of paragraphs, lists and tables, in no format yet.

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


@frozen
class Bullets:
    """A list of sentences."""

    items: Sequence[str]


Part = str | Bullets | Table
"""A text is a paragraph."""


@frozen
class Section:
    """A heading, and what is under it; the first section has the document's title."""

    title: str
    parts: Sequence[Part] = field(converter=tuple)


@frozen
class Document:
    """A page on an answer."""

    sections: Sequence[Section] = field(converter=tuple)

    @property
    def tables(self) -> Iterator[Table]:
        """Its tables, in their order."""
        return (p for s in self.sections for p in s.parts if isinstance(p, Table))
