"""A document as Markdown: what a terminal and a notebook show."""

from __future__ import annotations

from altcore.plugin import printable
from altcore_reporters import markdown
from altcore_reporters.study_pages.document import Bullets, Curves, Document, Intervals, Table


def as_markdown(document: Document) -> str:
    """Return a document as Markdown."""
    lines = []
    for level, section in enumerate(document.sections):
        lines += [f"{'##' if level else '#'} {line(section.title)}", ""]
        for part in section.parts:
            is_empty = isinstance(part, Table) and not part.rows
            if not is_empty and not isinstance(part, Intervals | Curves):
                lines += [*_lines(part), ""]
    return "\n".join(lines).rstrip() + "\n"


def _lines(part: str | Bullets | Table) -> list[str]:
    match part:
        case Bullets():
            return [f"- {line(item)}" for item in part.items]
        case Table():
            shown = part.shown
            rows = [[line(str(cell)).replace("|", "\\|") for cell in row] for row in shown.rows]
            return markdown.table(shown.head, rows)
        case str():
            return [line(part)]


def line(text: str) -> str:
    r"""Return a text as a line with its own marks alone: no HTML, no link, no control character.

    >>> line("**<b>** [a](http://a)\n# b")
    '**&lt;b>** [a]\\(http://a) # b'
    """
    plain = printable(" ".join(text.splitlines()))
    return plain.replace("<", "&lt;").replace("](", "]\\(")
