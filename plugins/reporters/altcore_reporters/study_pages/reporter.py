"""The reporters ``explanation`` and ``comparison``: what a study found, for people to read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

from altcore.plugin import replace_text
from altcore_reporters.study_pages.comparison import comparison
from altcore_reporters.study_pages.csv_table import as_csv
from altcore_reporters.study_pages.document import Document
from altcore_reporters.study_pages.explanation import explanation
from altcore_reporters.study_pages.html_page import as_html
from altcore_reporters.study_pages.latex import as_latex
from altcore_reporters.study_pages.markdown import as_markdown

RENDERERS: Mapping[str, Callable[[Document], str]] = {
    ".md": as_markdown,
    ".html": as_html,
    ".tex": as_latex,
    ".csv": as_csv,
}
"""What writes a document, by the end of the file's name."""


@attrs.define(eq=False)
class Explanation:
    """Renders the answer of `altcore explain`."""

    def render_answer(self, answer: Mapping[str, Any], out: Path) -> list[Path]:
        """Write the files of an explanation into a folder; returns their paths."""
        return write(answer, explanation, out) if answer["about"]["command"] == "explain" else []


@attrs.define(eq=False)
class Comparison:
    """Renders the answer of `altcore compare`."""

    def render_answer(self, answer: Mapping[str, Any], out: Path) -> list[Path]:
        """Write the files of a comparison into a folder; returns their paths."""
        return write(answer, comparison, out) if answer["about"]["command"] == "compare" else []


def write(
    answer: Mapping[str, Any], make: Callable[[Mapping[str, Any]], Document], out: Path
) -> list[Path]:
    """Write an answer in every format, under the name of its page."""
    document, name = make(answer), answer["about"]["page"]
    return [
        replace_text(out / f"{name}{suffix}", render(document))
        for suffix, render in RENDERERS.items()
    ]
