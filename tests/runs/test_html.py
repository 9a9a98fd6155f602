"""A run in a notebook."""

import math
import re
from html.parser import HTMLParser

import pytest
from helpers import run_directory

from altcore.runs import RunRecord, Summary, read_run
from altcore.runs.html import POINTS, run_html


class Cells(HTMLParser):
    """Collects the text of a page, and fails where an element is not closed."""

    def __init__(self, html):
        super().__init__()
        self.open, self.text = [], []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def summary(**facts):
    return Summary(
        **{"name": "r", "directory": "runs/r", "status": "finished", "steps": 9, **facts}
    ).to_plain()


def shown(losses, **facts):
    return run_html(summary(**facts), losses)


def test_a_run_shows_its_verdict_then_its_curve_and_its_summary():
    html = shown([3.0, 2.0, 1.0], verdict="learned", format="E4M3", recipe="pure")
    text = Cells(html).text
    assert text[:3] == ["r", ": learned", "training loss, from 3 to 1"]
    assert {"E4M3, pure", "finished", "9"} <= set(text)
    assert "0,0 240,48 480,96" in html


def test_texts_are_escaped():
    evil = "<script>alert(1)</script>"
    html = shown([], verdict=evil, recipe=evil, name=evil, error=evil)
    assert "<script" not in html
    assert sum(evil in text for text in Cells(html).text) >= 3


@pytest.mark.parametrize("losses", [[], [1.0], [math.nan] * 9, [None, None]])
def test_nothing_is_drawn_of_what_was_not_finite(losses):
    html = shown(losses)
    assert "svg" not in html
    assert Cells(html).text


def test_the_curve_breaks_where_it_is_not_finite():
    html = shown([2.0, 1.0, math.nan, 1.0, math.inf, 2.0, 1e308, -1e308])
    assert html.count("<polyline") == 3
    assert not re.search("nan|inf", html.partition("<table>")[0])


def test_a_long_curve_is_thinned():
    html = shown(list(range(100_000)))
    assert POINTS / 2 < html.count(",") < 2 * POINTS


def test_records_show_themselves(tmp_path):
    """Also one of which only the name is known, and one of a run that goes on."""
    directory = run_directory(tmp_path, name="going")
    directory.append("metrics.jsonl", {"step": 1, "loss": 2.0})
    directory.append("metrics.jsonl", {"step": 2, "loss": 1.0})
    html = read_run(directory.path)._repr_html_()
    assert Cells(html).text[:2] == ["going", ": the run is not over"]
    assert "polyline" in html
    assert Cells(RunRecord("far", "elsewhere")._repr_html_()).text[0] == "far"
