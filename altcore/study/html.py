"""The pages of studies as HTML, for notebooks: the part of Markdown that these are written in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from itertools import groupby

KINDS = (("#", "heading"), ("|", "table"), ("- ", "list"))
"""What a line is, by how it begins; any other is part of a paragraph."""


def as_html(markdown: str) -> str:
    """Return headings, tables, lists and paragraphs as HTML; every other character is escaped.

    >>> as_html("# A <b>")
    '<h3>A &lt;b&gt;</h3>'
    """
    lines = markdown.splitlines()
    return "".join(
        part for kind, group in groupby(lines, _kind_of) if kind for part in _block(kind, [*group])
    )


def _kind_of(line: str) -> str:
    if not line.strip():
        return ""
    return next((kind for start, kind in KINDS if line.startswith(start)), "paragraph")


def _block(kind: str, lines: list[str]) -> Iterator[str]:
    if kind == "heading":
        for line in lines:
            marks, _, text = line.partition(" ")
            level = min(6, len(marks) + 2)
            yield f"<h{level}>{_inline(text)}</h{level}>"
    elif kind == "list":
        yield f"<ul>{''.join(f'<li>{_inline(line[2:])}</li>' for line in lines)}</ul>"
    elif kind == "table":
        rows = [[_inline(cell.strip()) for cell in line.strip("|").split("|")] for line in lines]
        head, body = rows[0], rows[2:]  # below the head is the rule
        yield f"<table><tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>"
        for row in body:
            yield f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>"
        yield "</table>"
    else:
        yield f"<p>{_inline(' '.join(lines))}</p>"


def _inline(text: str) -> str:
    """Return a text with its bold words and its code."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
    return re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text)
