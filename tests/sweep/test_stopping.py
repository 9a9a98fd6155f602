"""A sweep that is stopped: no worker begins a job, until the sweep is run again."""

import pytest
from helpers_cli import call
from helpers_sweeps import complete, ledger_of

from altcore.sweep import Exit, SweepFile, Watch, Worker, placing_of, worker_of


@pytest.fixture
def ledger(tmp_path):
    """A sweep of two jobs."""
    return ledger_of(tmp_path, seeds=2)


def test_no_worker_begins_a_job(ledger):
    """And executors start none for the jobs that are left."""
    placing = placing_of(SweepFile(), ledger, "local", print)
    assert placing.left() == placing.waiting() == 2
    ledger.stop()
    assert Worker(ledger, 60).work() == placing.left() == placing.waiting() == 0
    ledger.go_on()
    assert placing.left() == 2
    ledger.take(ledger.jobs()[0], Watch(60))
    assert (placing.left(), placing.waiting()) == (2, 1)


@pytest.mark.parametrize("limit", [0, 1])
def test_the_first_that_fails_for_good_stops_it(ledger, monkeypatch, limit):
    """If the sweep file says so; one that is tried again does not."""
    failed = Exit(status="failed", error="no", cause="unknown")
    monkeypatch.setattr("altcore.sweep.worker.run_job", lambda *_, **__: failed)
    sweep = SweepFile(fail_fast=True, retry={"unknown": {"limit": limit, "repeat": True}})
    ledger.rules = sweep.rules
    assert worker_of(sweep, ledger, "local", bool).work() == 1 + limit
    assert ledger.is_stopped()


def test_run_goes_on(ledger, capsys):
    """The same command again: here nothing is left to do."""
    for job in ledger.jobs():
        complete(ledger, job)
    ledger.stop()
    assert call(capsys, "sweep", "run", "toy", "--sweeps-dir", ledger.folder.parent).code == 0
    assert not ledger.is_stopped()


def test_a_sweep_that_left_jobs_has_another_exit_code(ledger, capsys, monkeypatch):
    """Whatever follows it with && would go on with half of a sweep."""
    complete(ledger, ledger.jobs()[0])
    monkeypatch.setattr("altcore.sweep.worker.Worker.work", lambda _: 0)
    done = call(capsys, "sweep", "run", "toy", "--sweeps-dir", ledger.folder.parent)
    assert done.code == 1
    assert "1 job is left: altcore sweep run toy goes on" in done.err
