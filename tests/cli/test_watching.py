"""``altcore report --watch``: written again when a run has grown, until it is over."""

import json
import threading

import pytest
from attrs import define
from helpers import run_directory
from helpers_cli import call

from altcore.cli import watching
from altcore.cli.watching import watched
from altcore.formats import digest
from altcore.runs import RunRecord, read_run, replace_text


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(watching, "LOOK", 0.01)


@pytest.fixture
def live(tmp_path):
    """The directory of a run that has begun, and that this process writes."""
    directory = run_directory(tmp_path, name="live")
    directory.write("config.yaml", "seed: 1\n")
    grow(directory.path, 1)
    yield directory.path
    directory.close()


@pytest.fixture
def killed(tmp_path):
    """The directory of a run that began, and that nobody writes."""
    directory = run_directory(tmp_path, name="killed")
    directory.write("config.yaml", "seed: 1\n")
    directory.close()
    grow(directory.path, 1)
    return directory.path


def grow(path, step):
    with (path / "metrics.jsonl").open("a") as lines:
        lines.write(json.dumps({"step": step, "loss": 5.0 / step}) + "\n")


def end(path):
    summary = {"name": path.name, "directory": str(path), "status": "finished", "steps": 3}
    (path / "summary.json").write_text(json.dumps({**summary, "digest": digest(summary)}))


def test_a_run_is_read_again_until_it_is_over(live):
    found = []
    for (record,) in watched(lambda: [read_run(live)]):
        found.append((record.summary["status"], len(record.steps)))
        if len(found) < 3:
            grow(live, len(found) + 1)
        else:
            end(live)
    assert found == [*(("unfinished", n) for n in (1, 2, 3)), ("finished", 3)]


def test_a_run_that_was_killed_is_over(killed, capsys):
    """It is read once more after nobody wrote it, since it may have ended by then."""
    assert len(list(watched(lambda: [read_run(killed)]))) == 2
    assert capsys.readouterr().err == "altcore: killed: killed, or stopped writing\n"


def test_a_run_that_was_killed_waits_for_those_that_go_on(live, killed, capsys):
    found = []
    for records in watched(lambda: [read_run(live), read_run(killed)]):
        found.append([record.summary["status"] for record in records])
        if len(found) == 1:
            grow(live, 2)
        else:
            end(live)
    assert found == [["unfinished"] * 2] * 2 + [["finished", "unfinished"]]
    assert capsys.readouterr().err == "altcore: killed: killed, or stopped writing\n"


def test_a_tracker_is_asked_now_and_then(monkeypatch):
    """Its runs have no files to look at."""
    monkeypatch.setattr(watching, "ASK", 0.05)
    states = iter(["unfinished", "unfinished", "finished"])

    def read():
        record = RunRecord("r", "far:away")
        record.summary = {"status": next(states)}
        return [record]

    assert len(list(watched(read))) == 3


def test_the_command_writes_again_and_says_it_once(capsys, shelf, live):
    """And it ends with the run."""
    seen = []

    @define(eq=False)
    class Counting:
        def render(self, runs, out):
            seen.append(len(runs[0].steps))
            if len(seen) == 1:
                threading.Timer(0.05, lambda: (grow(live, 2), end(live))).start()
            return [replace_text(out / "own.txt", str(seen))]

    shelf.install("reporter", "own", Counting)
    outcome = call(capsys, "report", "own", "live", "--watch", "--runs-dir", live.parent)
    assert outcome.code == 0
    assert outcome.out.splitlines() == [str(live / "reports" / "own.txt")]
    assert outcome.err == "written again while the runs go on; Ctrl-C ends this\n"
    assert seen[0] == 1
    assert seen[-1] == 2
