"""``altcore report``: what a reporter wrote, and whose error it is if that fails."""

import re

import pytest
from attrs import define
from helpers import text_file
from helpers_cli import call


def reporter(shelf, render):
    """Install a reporter whose ``render`` is a function of runs and folder."""

    @define(eq=False)
    class Own:
        def render(self, runs, out):
            return render(runs, out)

    shelf.install("reporter", "own", Own, "acme-own", "1.5")


def leave():
    raise SystemExit(0)


@pytest.mark.parametrize(
    ("render", "says"),
    [
        (lambda runs, out: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda runs, out: leave(), "SystemExit: 0"),
        (lambda runs, out: (1 / 0 for _ in "a"), "ZeroDivisionError: division by zero"),
        (lambda runs, out: open("nowhere"), "FileNotFoundError: .*'nowhere'"),  # noqa: PTH123, SIM115
    ],
)
def test_an_error_of_render_names_the_reporter(capsys, shelf, start, render, says):
    """In one line, with its distribution; no traceback, and no other option blamed."""
    start(name="r")
    reporter(shelf, render)
    outcome = call(capsys, "report", "own", "r", "--runs-dir", start.runs)
    assert (outcome.code, outcome.out) == (1, "")
    (line,) = outcome.err.splitlines()
    assert line.startswith("altcore: reporter own (acme-own 1.5) failed in render: ")
    assert re.search(says, line)


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        (None, "None, not a list of the paths that it wrote"),
        (3, "3, not a list of the paths"),
        ("report.html", "'report.html', not a list of the paths"),
        ([3], "3 in its list, not a path"),
        ([None], "None in its list, not a path"),
        (["nowhere.html"], "'nowhere.html', where there is nothing"),
        ([""], "'', where there is nothing"),
    ],
)
def test_render_returns_paths_that_exist(capsys, shelf, start, returned, says):
    """What is printed can be opened."""
    start(name="r")
    reporter(shelf, lambda runs, out: returned)
    outcome = call(capsys, "report", "own", "r", "--runs-dir", start.runs)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith(f"altcore: reporter own (acme-own 1.5): render returned {says}")


def test_a_folder_that_cannot_be_written_is_the_users(capsys, shelf, start, tmp_path):
    """Whatever the reporter was about to write there."""
    start(name="r")
    reporter(shelf, lambda runs, out: [(out / "table.csv").write_text("x")])
    taken = tmp_path / "taken"
    taken.write_text("a file")
    arguments = ("report", "own", "r", "--runs-dir", start.runs, "--out", taken)
    outcome = call(capsys, *arguments)
    assert outcome.code == 2
    assert outcome.message == f"altcore: --out {taken}: cannot be written: Not a directory"


def test_what_was_written_is_printed(capsys, shelf, start, tmp_path):
    """A path a line."""
    start(name="r")

    def render(runs, out):
        for run in runs:
            (out / f"{run.name}.csv").touch()
            yield out / f"{run.name}.csv"

    reporter(shelf, render)
    arguments = ("report", "own", "r", "--runs-dir", start.runs, "--out", tmp_path)
    assert call(capsys, *arguments).out == f"{tmp_path / 'r.csv'}\n"


def test_runs_on_other_data_are_told(start, shelf, capsys, tmp_path):
    """A report of several runs says if they did not see the same data."""
    reporter(shelf, lambda runs, out: runs)
    other = text_file(tmp_path / "other.txt")
    other.write_text(other.read_text() + "more")
    start(name="a", max_steps=1)
    start(name="b", max_steps=1)
    start(name="c", max_steps=1, gpt__data=str(other))
    where = ("--runs-dir", start.runs, "--out", tmp_path / "out")
    found = call(capsys, "report", "own", "a", "b", "c", *where)
    assert found.code == 0, found.err
    (line,) = found.err.splitlines()
    assert line.startswith("altcore: data is ")
    assert line.endswith(" in c")
