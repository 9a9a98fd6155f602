"""The reporter ``page``: one self-contained HTML file for a run, or for any set of runs.

It needs no network, can be read without JavaScript, and is made of the record alone. It is
written at a run's end, and by ``altcore report page RUN...`` at any time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from altcore.plugin import hookimpl, read_run, replace_text

if TYPE_CHECKING:
    from jinja2 import Template

    from altcore.plugin import Run, RunRecord

FILE = "page.html"
UNSEEN = {
    ord(c): f"\\u{ord(c):04x}"
    for c in "\0\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
}
"""Characters that nobody sees, and that turn the text around them, by how they are written."""


@attrs.define(eq=False)
class Page:
    """Writes ``reports/page.html`` at the end of a run, and the page of recorded runs."""

    @hookimpl
    def on_event(self, run: Run, event: Mapping[str, Any]) -> None:
        """Write the page of the run that ends, before trackers send the reports in `run_end`."""
        if event["event"] != "end":
            return
        path = run.reports_dir / FILE
        write([read_run(run.directory)], path)
        relative = path.relative_to(run.directory).as_posix()
        if relative not in run.reports:
            run.reports.append(relative)

    def render(self, runs: Sequence[RunRecord], out: Path) -> list[Path]:
        """Write one page on the runs into the folder ``out``; returns its path."""
        out.mkdir(parents=True, exist_ok=True)
        return [write(runs, out / FILE)]


def write(records: Sequence[RunRecord], path: Path) -> Path:
    """Write the page on some runs, at once or not at all; returns ``path``."""
    return replace_text(path, html_of(records))


def html_of(records: Sequence[RunRecord]) -> str:
    """Return the page on some runs."""
    from altcore_reporters.page.contents import contents_of

    return _template().render(page=contents_of(records))


@cache
def _template() -> Template:
    # Imported here: a run without a page does not pay for it.
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    from altcore_reporters.page.words import number

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value.translate(UNSEEN) if type(value) is str else value,
    )
    environment.filters["word"] = lambda value: (
        number(value) if isinstance(value, int | float) and value is not True else str(value)
    )
    # Both are ours: what comes from a record is never put into them.
    for name, file in (("style", "style.css"), ("script", "script.js")):
        environment.globals[name] = Markup(_text(file))
    return environment.from_string(_text("page.html"))


def _text(file: str) -> str:
    return (files(__package__) / file).read_text(encoding="utf-8")
