"""A document as one self-contained HTML page, with its pictures."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

from altcore_reporters.page.templates import template, text_of
from altcore_reporters.study_pages.document import (
    Bullets,
    Cell,
    Curves,
    Document,
    Intervals,
    Part,
    Table,
)
from altcore_reporters.study_pages.drawn import drawn_curves, drawn_intervals

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup


def as_html(document: Document) -> str:
    """Return a document as a page: no network, no script, and readable without pictures."""
    sections = [
        (s.title, [_drawn(p) for p in s.parts if not isinstance(p, Table) or p.rows])
        for s in document.sections
    ]
    return _template().render(title=document.sections[0].title, sections=sections)


def _drawn(part: Part) -> tuple[str, object]:
    """Return a part with its kind, by which the template writes it."""
    match part:
        case Bullets():
            return "list", part.items
        case Table():
            return "table", part.shown
        case Intervals():
            return "intervals", drawn_intervals(part)
        case Curves():
            return "curves", drawn_curves(part)
        case str():
            return "paragraph", part


@cache
def _template() -> Template:
    package = "altcore_reporters.study_pages"
    style = text_of("altcore_reporters.page", "style.css") + text_of(package, "study.css")
    return template(package, "study.html", {"style": style}, marked=marked, name=name)


def marked(cell: Cell) -> Markup:
    """Return a text with its bold words and its code; all else is escaped.

    >>> marked("**It <trains>**: `a*b`")
    Markup('<strong>It &lt;trains&gt;</strong>: <code>a*b</code>')
    """
    from markupsafe import Markup, escape

    from altcore_reporters.page.templates import UNSEEN

    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(str(cell).translate(UNSEEN))))
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text))


def name(given: Cell) -> Markup:
    """Return a text as `marked`, in which names of arms break between their parts.

    >>> name("E4M3/weight=up")
    Markup('E4M3/<wbr>weight=<wbr>up')
    """
    from markupsafe import Markup

    return Markup(re.sub(r"([/=_])(?=\w)(?![^<]*>)", r"\1<wbr>", str(marked(given))))
