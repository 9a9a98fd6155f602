"""A worker whose time is short begins only what is expected to end."""

import time

import pytest
from attrs import evolve
from helpers_cli import call

from altcore.sweep import Exit, Job, Ledger, SweepFile, Worker, begin_sweep, jobs_of
from altcore.sweep.attempt import lease
from altcore.sweep.time_left import TimeLeft

JOB = Job(name="next", config={"max_steps": 1}, variant="pure")


@pytest.fixture
def ledger(tmp_path):
    """A sweep in which one job of each variant ended, after two attempts, and others wait."""
    ledger = Ledger(tmp_path / "sweep")
    for variant, seconds in (("pure", 100.0), ("master", 300.0)):
        job = evolve(JOB, name=f"{variant}-1", variant=variant)
        ledger.add([job])
        for number, status in enumerate(("interrupted", "finished"), 1):
            held = lease(ledger.folder / "jobs" / job.name, number, {})
            held.attempt.end(Exit(status=status, seconds=seconds / 2))
        ledger.run_of(job.name).mkdir(parents=True)
    return ledger


def left(ledger, seconds):
    """The time of a worker that began long ago."""
    return TimeLeft(ledger, time.time() + seconds, 10_000)


def test_a_job_is_expected_to_take_what_others_of_its_variant_took(ledger):
    """In all their attempts; of a variant that has no result yet, what any job took."""
    # Of these nothing is learnt: a job that is damaged, and one that the sweep no longer has.
    ledger.add([evolve(JOB, name="damaged")])
    (ledger.folder / "jobs" / "damaged" / "job.json").write_text("{")
    for name in ("damaged", "retired"):
        ledger.run_of(name).mkdir()
    for variant, seconds in (("pure", 100), ("master", 300), ("new", 200)):
        job = evolve(JOB, variant=variant)
        assert not left(ledger, seconds - 1).is_enough(job)
        assert left(ledger, seconds + 5).is_enough(job)


def test_results_that_come_later_count(ledger, monkeypatch):
    """They are looked for now and then, and read once."""
    monkeypatch.setattr("altcore.sweep.time_left.REFRESH", 0.0)
    watch = left(ledger, 150)
    assert watch.is_enough(JOB)
    ledger.add([evolve(JOB, name="late")])
    held = lease(ledger.folder / "jobs" / "late", 1, {})
    held.attempt.end(Exit(status="finished", seconds=300.0))
    ledger.run_of("late").mkdir()
    assert not watch.is_enough(JOB)


def test_a_job_that_can_end_nowhere_is_begun_by_a_fresh_worker(ledger):
    """Or no worker would ever begin it; it goes on from its last checkpoint in the next one."""
    assert TimeLeft(ledger, time.time() + 50, 51).is_enough(JOB)
    assert not TimeLeft(ledger, time.time() + 40, 51).is_enough(JOB)


def test_while_nothing_is_known_every_job_may_begin(tmp_path):
    """But not when the time is over."""
    assert left(Ledger(tmp_path), 1).is_enough(JOB)
    assert not left(Ledger(tmp_path), -1).is_enough(JOB)


def test_a_worker_leaves_what_it_may_not_begin(ledger):
    """To others, and does not wait for it."""
    ledger.add([JOB])
    late = left(ledger, -1)
    worker = Worker(ledger, lost_after=60, tell=print, may_begin=late.is_enough)
    assert worker.work() == 0
    assert not ledger.standing(JOB.name).attempts


def test_the_command_begins_nothing_when_its_time_is_over(tmp_path, capsys):
    """It ends well: others go on."""
    asked = SweepFile(name="toy", base={"max_steps": 1, "gpt.size": "tiny"})
    ledger, _ = begin_sweep(asked, jobs_of(asked), str(tmp_path))
    done = call(capsys, "sweep", "work", "toy", "--sweeps-dir", tmp_path, "--until", "1")
    assert done.code == 0, done.err
    assert [ledger.standing(name).attempts for name in ledger.names()] == [()]
