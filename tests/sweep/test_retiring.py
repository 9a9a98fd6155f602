"""A job is taken out of its sweep whole, whoever else reaches for it at that moment."""

import itertools
import os
import shutil
import time

import pytest
from attrs import evolve
from helpers_sweeps import complete, ledger_of, record

from altcore.errors import BadInput
from altcore.processes import Process
from altcore.sweep import Exit, Ledger, State, Watch, Worker, bring_up_to_date, ledger
from altcore.sweep.attempt import Attempt


@pytest.fixture
def toy(tmp_path):
    """A sweep of one job, and that job."""
    made = ledger_of(tmp_path)
    return made, made.jobs()[0]


def test_a_worker_that_races_for_the_lease_is_too_late(toy, monkeypatch):
    """Whether it comes before the folder is moved, while it is, or afterwards."""
    made, job = toy
    told, real = [], ledger.durable.rename
    worker = Worker(made, 60, tell=told.append)

    def rename(path, target):
        if path.name == job.name:
            worker.work()
        real(path, target)

    monkeypatch.setattr(ledger.durable, "rename", rename)
    monkeypatch.setattr(worker, "waits", False)
    made.retire(job.name)
    assert made.names() == []
    with pytest.raises(BadInput, match="it was taken out of the sweep"):
        made.take(job, Watch(60))
    assert list((made.folder / "jobs").iterdir()) == []
    (end,) = made.folder.glob("retired/*/jobs/attempts/001/exit.json")
    assert "taken out" in end.read_text()
    assert told == []


def test_a_worker_that_knows_the_job_as_it_was_leaves_it_alone(toy, monkeypatch):
    """Another one has its name by now, and what is made of it is no result of the old one."""
    made, job = toy
    now = evolve(job, config={**job.config, "max_steps": 7})
    bring_up_to_date(made, [now], accept=True)
    told = []
    with monkeypatch.context() as before:
        before.setattr(Ledger, "read_jobs", lambda _: ([job], {}))
        assert Worker(made, 60, tell=told.append).work() == 0
    assert told == [f"{job.name}: it was taken out of the sweep; this worker leaves the job alone"]
    assert made.standing(job.name).state is State.WAITING
    complete(made, made.job(job.name))


def test_a_job_that_is_being_run_stays(toy, monkeypatch):
    """The process is named. One that is silent elsewhere is lost after a while."""
    made, job = toy
    attempt = made.take(job, Watch(60)).attempt
    with pytest.raises(BadInput, match=f"is being run by process {os.getpid()} on "):
        made.retire(job.name)
    assert made.names() == [job.name]
    monkeypatch.setattr(Process, "is_gone", lambda _: None)
    beats = itertools.count()
    with monkeypatch.context() as beating:
        beating.setattr(Attempt, "heartbeat", property(lambda _: next(beats)))
        with pytest.raises(BadInput, match="is being run"):
            made.retire(job.name)
    assert attempt.exit is None
    made.retire(job.name, lost_after=0.05)
    assert made.names() == []
    assert not (made.folder / "jobs" / job.name).exists()


def test_a_worker_that_knows_the_job_as_it_was_makes_no_attempt(toy):
    """Nor does the new job's folder hold anything of it."""
    made, job = toy
    bring_up_to_date(made, [evolve(job, config={**job.config, "max_steps": 7})], accept=True)
    with pytest.raises(BadInput, match="it was taken out of the sweep"):
        made.take(job, Watch(60))
    assert made.standing(job.name).attempts == ()


def replaced(made, job):
    """Remove a job while it is held, and add another one of its name, which is held, too."""
    late = made.take(job, Watch(60))
    shutil.rmtree(made.folder / "jobs" / job.name)
    now = evolve(job, config={**job.config, "max_steps": 7})
    made.add([now])
    return late, made.take(now, Watch(60))


def test_a_late_holder_writes_nothing_into_the_attempt_of_another(toy):
    """No heartbeat, no end and no run: the place has the same name, and is not its own."""
    made, job = toy
    late, held = replaced(made, job)
    assert late.attempt == held.attempt
    with late.beating(lost_after=0.06):
        time.sleep(0.05)
    record(late.attempt.work / job.name, status="finished")
    ended = made.end(job, late, Exit(status="finished"))
    assert (ended.status, ended.error) == ("refused", "it was taken out of the sweep")
    assert (held.attempt.heartbeat, held.attempt.exit) == ("", None)
    assert not made.run_of(job.name).exists()


def test_what_a_run_saves_of_itself_makes_no_job(toy):
    """Its job was removed meanwhile: the state is kept with those that the sweep no longer has."""
    made, job = toy
    late = made.take(job, Watch(60))
    shutil.rmtree(made.folder / "jobs" / job.name)
    record(late.attempt.work / f"{job.name}-rescued")
    assert made.end(job, late, Exit(status="failed")).status == "refused"
    assert made.names() == []
    assert len(list(made.folder.glob("retired/*/jobs/attempts/001/work/*-rescued"))) == 1


def test_a_command_that_was_killed_while_it_retired_a_job_goes_on(toy, monkeypatch):
    """Run and job come into one folder."""
    made, job = toy
    complete(made, job)
    with monkeypatch.context() as killed:
        killed.setattr(ledger.durable, "rename", dies_at("jobs", ledger.durable.rename))
        with pytest.raises(KeyboardInterrupt):
            made.retire(job.name)
    assert not made.run_of(job.name).exists()
    made.retire(job.name)
    (kept,) = (made.folder / "retired").iterdir()
    assert {p.name for p in kept.iterdir()} == {"jobs", "runs"}


def dies_at(name, rename):
    def renamed(path, target):
        if target.name == name:
            raise KeyboardInterrupt
        rename(path, target)

    return renamed


def test_no_job_is_retired_while_another_one_is_being_run(tmp_path):
    """The sweep stays as it was, whole."""
    made = ledger_of(tmp_path, seeds=2)
    first, second = made.jobs()
    complete(made, first)
    made.take(second, Watch(60))
    now = [evolve(job, config={**job.config, "max_steps": 7}) for job in (first, second)]
    with pytest.raises(BadInput, match=f"{second.name} is being run"):
        bring_up_to_date(made, now, accept=True)
    assert made.names() == [first.name, second.name]
    assert made.standing(first.name).state is State.COMPLETED
