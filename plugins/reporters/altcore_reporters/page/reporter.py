"""The reporter ``page``: one self-contained HTML file for a run, or for any set of runs.

It needs no network, can be read without JavaScript, and is made of the record alone. It is
written at a run's end, and by ``altcore report page RUN...`` at any time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from altcore.plugin import hookimpl, read_run, replace_text
from altcore_reporters.page.templates import template, text_of

if TYPE_CHECKING:
    from jinja2 import Template

    from altcore.plugin import Run, RunRecord

FILE = "page.html"
PACKAGE = "altcore_reporters.page"


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
    files = {"style": "style.css", "script": "script.js"}
    ours = {name: text_of(PACKAGE, file) for name, file in files.items()}
    return template(PACKAGE, "page.html", ours)
