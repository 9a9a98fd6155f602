"""``altcore runs upload``: each line of a run reaches its tracker once, in whatever pieces."""

import attrs
import pytest
from helpers_cli import call
from helpers_recorded import RecordedRun

from altcore import setting
from altcore_reporters.tracking import TrackerReporter


@pytest.fixture
def run(tmp_path):
    run = RecordedRun(tmp_path)
    run.steps(1, 2, 3)
    return run


@pytest.fixture
def upload(shelf, run, capsys, tmp_path):
    """Return a function that uploads the run to a tracker that keeps its rows in memory."""
    rows = []

    @attrs.define(eq=False)
    class Memory(TrackerReporter):
        place: str = setting("somewhere", help="what it calls itself")

        def start(self, record):
            self.address = self.place
            return len(rows)

        def log(self, step, values, when):
            if len(rows) == Memory.limit:
                raise OSError("the connection was closed")
            rows.append((step, values["loss"]))

        def finish(self, record):
            if Memory.limit == "finish":
                raise OSError("the connection was closed")

        def abandon(self):
            Memory.abandoned += 1

    Memory.limit, Memory.rows, Memory.abandoned = None, rows, 0
    shelf.install("reporter", "memory", Memory, "acme-memory", "1.5")

    def upload(*options, limit=None):
        Memory.limit = limit
        more = ("--runs-dir", tmp_path / "runs", *options)
        return call(capsys, "runs", "upload", "run", "--to", "memory", *more)

    upload.rows, upload.tracker = rows, Memory
    return upload


ROWS = [(1, 4.875), (2, 4.75), (3, 4.625)]


def test_each_line_is_sent_once(run, upload):
    first = upload()
    assert (first.code, first.out) == (0, "run: sent 3 rows to somewhere\n")
    assert upload.rows == ROWS
    again = upload()
    assert (again.code, again.out) == (0, "run: everything is there already\n")
    run.steps(4)
    assert upload().out == "run: sent 1 rows to somewhere\n"
    assert upload.rows == [*ROWS, (4, 4.5)]


@pytest.mark.parametrize("limit", [0, 1, 2, "finish"])
def test_an_upload_that_was_cut_off_goes_on(upload, limit):
    cut = upload(limit=limit)
    assert cut.code == 1
    who = "reporter memory (acme-memory 1.5)"
    assert cut.err.splitlines() == [
        "sending run to memory (1 of 1)",
        f"altcore: {who} failed in upload: OSError: the connection was closed",
    ]
    assert len(upload.rows) == (3 if limit == "finish" else limit)
    assert upload.tracker.abandoned == 1
    assert upload().code == 0
    assert upload.tracker.abandoned == 1
    assert upload.rows == ROWS
    assert upload().out == "run: everything is there already\n"


def test_settings_say_where_to(run, upload):
    assert upload("--set", "place=elsewhere").out.endswith("to elsewhere\n")
    upload.rows.clear()
    assert upload("--set", "memory.place=there").out.endswith("sent 3 rows to there\n")


@pytest.mark.parametrize("tracker", ["csv", "tensorboard", "trackio"])
def test_the_trackers_here_are_left_as_they_are(run, tracker, capsys, tmp_path, monkeypatch):
    """By a second upload. What somebody removed is sent again."""
    if tracker == "trackio":
        from trackio import sqlite_storage

        monkeypatch.setattr(sqlite_storage, "TRACKIO_DIR", run.path / "reports" / "trackio")
    given = ("runs", "upload", "run", "--to", tracker, "--runs-dir", tmp_path / "runs")
    assert call(capsys, *given).out.startswith("run: sent 3 rows to ")
    folder = run.path / "reports" / tracker
    files = {path: path.read_bytes() for path in folder.iterdir()}
    assert call(capsys, *given).out == "run: everything is there already\n"
    assert {path: path.read_bytes() for path in folder.iterdir()} == files
    for path in folder.glob("*"):
        if path.name not in ("lock", "sent.txt", "complete.txt"):
            path.unlink()
    assert call(capsys, *given).out.startswith("run: sent 3 rows to ")


def test_what_cannot_be_uploaded_is_refused(shelf, run, capsys, tmp_path):
    shelf.install("reporter", "silent", attrs.make_class("Silent", [], eq=False))
    runs = ("--runs-dir", tmp_path / "runs")
    outcome = call(capsys, "runs", "upload", "run", "--to", "silent", *runs)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == "altcore: reporter silent (acme-silent 1.2.3) sends no runs\n"
    outcome = call(capsys, "runs", "upload", "--to", "silent", *runs)
    assert outcome.code == 2
    assert "runs upload needs the name of a run" in outcome.err
