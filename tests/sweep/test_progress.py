"""What `altcore sweep run` tells while workers run: a line as an attempt begins and as it ends."""

import pytest
from helpers_sweeps import complete, fail, ledger_of, record

from altcore.sweep import Exit, Progress, Watch, progress

OOM = "out of memory: 3 bytes"


@pytest.fixture
def ledger(tmp_path):
    """A sweep of three jobs, of which the first was done before the command began."""
    ledger = ledger_of(tmp_path, base={"gpt.size": "tiny", "gpt.batch_size": 64}, seeds=3)
    complete(ledger, ledger.jobs()[0])
    return ledger


@pytest.fixture
def told(ledger):
    """Return a function that gives the lines of a look at once."""
    lines = []
    watching = Progress(ledger, lines.append)

    def look():
        lines.clear()
        watching.look(at_once=True)
        return list(lines)

    return look


def test_each_beginning_and_end_is_told_once(ledger, told):
    """With the time, what failed, what follows, and how many jobs are done of all."""
    _, one, other = ledger.jobs()
    assert told() == []
    held = ledger.take(one, Watch(60))
    assert told() == [f"{one.name}: begins (1 of 3 jobs done)"]
    assert told() == []
    record(held.attempt.work / one.name, status="finished", verdict="learned")
    ended = Exit(status="finished", verdict="learned", seconds=59.0, changes=["torch.relu"])
    ledger.end(one, held, ended)
    fail(ledger, other, OOM)
    assert told() == [
        f"{one.name}: finished after 59 s: learned; replaced torch.relu (2 of 3 jobs done)",
        f"{other.name}: begins (2 of 3 jobs done)",
        f"{other.name}: failed after 1 s: {OOM}; out_of_memory: with gpt.batch_size 32 "
        "(2 of 3 jobs done)",
    ]
    fail(ledger, other, "ValueError: no")
    assert told() == [
        f"{other.name}: attempt 2 begins (2 of 3 jobs done)",
        f"{other.name}: failed after 1 s: ValueError: no; unknown: no attempt is made after a "
        "failure (3 of 3 jobs done)",
    ]
    assert told() == []


def test_attempts_between_two_looks_are_told(ledger, told):
    """A job that failed and was completed since says both."""
    _, job, _ = ledger.jobs()
    fail(ledger, job, OOM)
    complete(ledger, job, changed={"gpt.batch_size": 32})
    assert told() == [
        f"{job.name}: begins (1 of 3 jobs done)",
        f"{job.name}: failed after 1 s: {OOM} (1 of 3 jobs done)",
        f"{job.name}: attempt 2 begins (1 of 3 jobs done)",
        f"{job.name}: finished after 1 s: learned (2 of 3 jobs done)",
    ]
    assert told() == []


def test_what_a_killed_worker_published_is_done(ledger, told):
    """Though it wrote no end; and a damaged file is passed by."""
    _, one, other = ledger.jobs()
    for job in (one, other):
        ledger.take(job, Watch(60))
    record(ledger.run_of(one.name), status="finished", seconds=3.0)
    (ledger.folder / "jobs" / other.name / "attempts" / "001" / "exit.json").write_text("{")
    lines = told()
    assert lines[1] == f"{one.name}: finished after 3 s (2 of 3 jobs done)"
    assert lines[2:] == [f"{other.name}: begins (2 of 3 jobs done)"]
    assert told() == []


def test_looks_are_seldom(ledger, monkeypatch):
    """However often an executor asks for one."""
    lines, now = [], 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    watching = Progress(ledger, lines.append)
    watching.look()
    ledger.take(ledger.jobs()[1], Watch(60))
    now += 0.9
    watching.look()
    assert lines == []
    now += 0.2
    watching.look()
    assert len(lines) == 1
