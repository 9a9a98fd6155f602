"""``altcore report``: what a reporter wrote, and whose error it is if that fails."""

import re
import shutil

import pytest
from attrs import define
from helpers import text_file
from helpers_cli import call

from altcore import BadInput
from altcore.runs import RunRecord, replace_text


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


@pytest.mark.parametrize("inner", ["", "/step-1"])
def test_nothing_is_written_among_checkpoints(capsys, shelf, start, inner):
    """A table.csv there would be no part of a checkpoint."""
    result = start(name="r")
    reporter(shelf, lambda runs, out: [(out / "table.csv").write_text("x")])
    out = f"{result.run_directory}/checkpoints{inner}"
    outcome = call(capsys, "report", "own", "r", "--runs-dir", start.runs, "--out", out)
    assert outcome.code == 2
    told = f"altcore: --out: {out} is in the record of the run r: checkpoints: write it elsewhere"
    assert outcome.message == told
    assert not list(result.run_directory.rglob("table.csv"))


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
    reporter(shelf, lambda runs, out: [run.directory for run in runs])
    other = text_file(tmp_path / "other.txt")
    other.write_text(other.read_text() + "more")
    start(name="a", max_steps=1)
    start(name="b", max_steps=1)
    start(name="c", max_steps=1, gpt__data=str(other))
    where = ("--runs-dir", start.runs, "--out", tmp_path / "out")
    found = call(capsys, "report", "own", "a", "b", "c", *where)
    assert found.code == 0, found.err
    (line,) = found.err.splitlines()
    assert line.startswith("altcore: not all runs were made alike: c has data ")
    assert line.endswith(", which a has")
    # One line for both that are alike, and none for what a run has no record of.
    shutil.copytree(start.runs / "c", start.runs / "d")
    shutil.copytree(start.runs / "c", start.runs / "old", ignore=lambda *_: ["checkpoints"])
    found = call(capsys, "report", "own", "old", "a", "b", "c", "d", *where)
    assert found.err.splitlines() == [line.replace("c has data", "c and 1 more have data")]


def names_in(folder):
    """A reporter's ``render`` that writes the runs' names and sources into ``folder``/names."""

    def render(runs, out):
        return [replace_text(out / "names", "".join(f"{r.name} {r.source}\n" for r in runs))]

    return render


def a_run(folder, name, *more):
    """Write the least that is a run's directory."""
    (folder / name).mkdir(parents=True)
    (folder / name / "config.yaml").write_text("seed: 1\n")
    (folder / name / "metrics.jsonl").write_text("".join(more))
    return folder / name


def test_all_runs_of_a_folder(capsys, shelf, tmp_path, monkeypatch):
    """Without a name; one that cannot be read is left out by name, and spoils no other.

    The folder may be called like the address of a tracker.
    """
    monkeypatch.chdir(tmp_path)
    reporter(shelf, names_in(tmp_path))
    for name in ("a", "b", "c"):
        a_run(tmp_path / "my:shelf", name)
    (tmp_path / "my:shelf" / "b" / "summary.json").write_text("[]")
    found = call(capsys, "report", "own", "--from", "my:shelf")
    assert (found.code, found.out) == (0, "reports/names\n"), found.err
    assert (tmp_path / "reports" / "names").read_text() == "a my:shelf/a\nc my:shelf/c\n"
    assert "b cannot be read, and is left out" in found.err


def test_a_folder_without_runs_is_said(capsys, shelf, tmp_path):
    """And nothing is written."""
    reporter(shelf, names_in(tmp_path))
    found = call(capsys, "report", "own", "--from", tmp_path)
    assert (found.code, found.message) == (2, f"altcore: there are no runs in {tmp_path}")


def test_one_run_is_reported_on_in_its_directory(capsys, shelf, tmp_path):
    """Unless its reports/ leads out of it."""
    reporter(shelf, names_in(tmp_path))
    run = a_run(tmp_path, "a")
    where = ("report", "own", "a", "--runs-dir", tmp_path)
    assert call(capsys, *where).out == f"{run / 'reports' / 'names'}\n"


def reader(shelf, read_runs):
    """Install a reporter ``far`` that reads runs back by a function of address and names."""

    @define(eq=False)
    class Far:
        def read_runs(self, address, names):
            return read_runs(address, names)

    shelf.install("reporter", "far", Far, "acme-far", "2.0")


def test_runs_of_a_tracker(capsys, shelf, tmp_path, monkeypatch):
    """The reporter before the colon reads them: all that follows is its address."""
    monkeypatch.chdir(tmp_path)
    reporter(shelf, names_in(tmp_path))
    reader(shelf, lambda address, names: [RunRecord(n, address) for n in names or ("x", "y")])
    assert call(capsys, "report", "own", "--from", "far:me/here:1").out == "reports/names\n"
    written = tmp_path / "reports" / "names"
    assert written.read_text() == "x me/here:1\ny me/here:1\n"
    assert call(capsys, "report", "own", "z", "--from", "far:me").code == 0
    assert written.read_text() == "z me\n"


def unknown(address, names):
    raise BadInput(f"there is no run {names[0]!r} in {address}", meant="x")


@pytest.mark.parametrize(
    ("source", "read_runs", "code", "says"),
    [
        ("own:a", None, 2, "reporter own (acme-own 1.5) reads no runs back"),
        ("fra:a", None, 2, "unknown reporter 'fra' (did you mean far?)"),
        ("far:a", lambda address, names: [], 2, "there are no runs in far:a"),
        ("far:a", unknown, 2, "there is no run 'z' in a (did you mean x?)"),
        ("far:a", lambda address, names: 1 / 0, 1, "(acme-far 2.0) failed in read_runs: ZeroDiv"),
        ("far:a", lambda address, names: ["z"], 1, "read_runs returned 'z', not a RunRecord"),
    ],
)
def test_a_source_that_gives_no_runs(capsys, shelf, tmp_path, source, read_runs, code, says):
    """Is named, in one line."""
    reporter(shelf, names_in(tmp_path))
    reader(shelf, read_runs)
    found = call(capsys, "report", "own", "z", "--from", source)
    assert (found.code, found.out) == (code, "")
    (line,) = found.err.splitlines()
    assert says in line
