"""Workers run what is left, each job once, whatever happens to them."""

import os
import shutil
import signal
import sys
import time
from contextlib import suppress

import pytest
import torch
from attrs import define, evolve
from helpers_crashes import forked

from altcore.plugin import hookimpl, setting
from altcore.runs import EVENTS, lines_of, summary_of
from altcore.sweep import Exit, Ledger, State, SweepFile, Watch, Worker, jobs_of, try_again
from altcore.sweep.run_job import run_job
from altcore.sweep.worker import HANGS

BASE = {
    "gpt.size": "tiny",
    "gpt.n_layer": 1,
    "gpt.block_size": 8,
    "max_steps": 4,
    "warmup_steps": 0,
    "eval_steps": 1,
    "checkpoint_interval": 1,
    "no_plugins": ["progress", "page", "failure-report"],
}


@pytest.fixture
def ledger(tmp_path, corpus):
    """A sweep of two jobs."""
    asked = SweepFile(base={**BASE, "data": str(corpus)}, grid={"learning_rate": [0.1, 0.2]})
    ledger = Ledger(tmp_path / "sweep")
    ledger.add(jobs_of(asked))
    return ledger


def work(ledger, **keys):
    return Worker(ledger, 60, **{"tell": lambda _: None, **keys}).work()


def states(ledger):
    return [ledger.standing(job.name).state for job in ledger.jobs()]


def losses(ledger):
    """Return the loss that each accepted run ended with."""
    return [summary_of(ledger.run_of(job.name))["final_loss"] for job in ledger.jobs()]


def test_a_worker_runs_every_job_once(ledger):
    """And finds nothing to do afterwards."""
    assert states(ledger) == [State.WAITING] * 2
    assert work(ledger) == 2
    assert states(ledger) == [State.COMPLETED] * 2
    assert work(ledger) == 0
    for job in ledger.jobs():
        assert summary_of(ledger.run_of(job.name))["status"] == "finished"
        (attempt,) = ledger.standing(job.name).attempts
        assert attempt.exit.status == "finished"
        assert attempt.exit.seconds > 0
        assert attempt.exit.used["peak_memory_bytes"] > 1e6


def test_a_killed_worker_is_replaced_in_the_middle_of_a_run(ledger, tmp_path):
    """The next one goes on from its last checkpoint, and ends with the same numbers."""
    undisturbed = Ledger(tmp_path / "other")
    undisturbed.add(ledger.jobs())
    work(undisturbed)
    assert forked(lambda: work(ledger), "rename step-00000002:1") == -signal.SIGKILL
    assert states(ledger) == [State.RUNNING, State.WAITING]
    assert work(ledger) == 2
    assert states(ledger) == [State.COMPLETED] * 2
    first, second = ledger.standing(ledger.jobs()[0].name).attempts
    assert (first.exit.status, second.exit.status) == ("lost", "finished")
    assert losses(ledger) == losses(undisturbed)
    assert second.run_directory(ledger.jobs()[0].name) is None


def test_a_signal_ends_the_attempt_and_burns_no_retry(ledger):
    """The worker leaves with the signal's code; the job waits, and goes on after others if that
    happened twice before a step: it may have sent the signal itself.
    """

    def leave():
        run_job.__globals__["has_summary"] = lambda _: os.kill(os.getpid(), signal.SIGTERM)
        work(ledger)

    assert forked(leave) != 0
    assert states(ledger) == [State.WAITING] * 2
    assert forked(leave) != 0
    one, other = ledger.jobs()
    lines = []
    assert work(ledger, note=lines.append) == 2
    assert [line.partition(":")[0] for line in lines[::2]] == [other.name, one.name]
    assert states(ledger) == [State.COMPLETED] * 2


def test_a_finished_run_that_was_not_published(ledger):
    """Is published by the next attempt, and not trained again."""
    name = ledger.jobs()[0].name
    assert forked(lambda: work(ledger), f"rename {name}:1") == -signal.SIGKILL
    before = ledger.standing(ledger.jobs()[0].name).last.run_directory(name)
    ended = summary_of(before)
    assert ended["status"] == "finished"
    work(ledger)
    assert summary_of(ledger.run_of(name))["seconds"] == ended["seconds"]


@pytest.mark.parametrize("lost_at", ["rename step-00000002:1", "rename {}:1"])
@pytest.mark.parametrize("publisher", ["ends", "is killed before it tells its end"])
def test_a_run_that_was_removed_is_made_anew(ledger, lost_at, publisher):
    """Whatever copy an attempt has that was lost before the run was published."""
    name = ledger.jobs()[0].name
    assert forked(lambda: work(ledger), lost_at.format(name)) == -signal.SIGKILL
    crash = "" if publisher == "ends" else "link exit.json:2"  # the first is of the lost attempt
    forked(lambda: work(ledger), crash)
    published = summary_of(ledger.run_of(name))["run_id"]
    assert (ledger.standing(name).last.exit is None) == bool(crash)
    shutil.rmtree(ledger.run_of(name))
    work(ledger)
    assert summary_of(ledger.run_of(name))["run_id"] != published
    assert not [e for e in lines_of(ledger.run_of(name), EVENTS) if e["event"] == "resume"]


def test_a_worker_that_is_killed_before_it_has_a_copy_loses_none(ledger):
    """The attempt after that one copies the run of the one before."""
    name = ledger.jobs()[0].name
    assert forked(lambda: work(ledger), "rename step-00000002:1") == -signal.SIGKILL
    assert forked(lambda: work(ledger), f"rename {name}:1") == -signal.SIGKILL
    second = ledger.standing(name).last
    assert second.run_directory(name) is None
    work(ledger)
    assert len(ledger.standing(name).attempts) == 3
    assert [e for e in lines_of(ledger.run_of(name), EVENTS) if e["event"] == "resume"]


@pytest.mark.parametrize("way", ["as it was", "anew"])
def test_a_run_that_is_not_what_it_was_says_what_a_sweep_can_do(corpus, tmp_path, way):
    """Not what `altcore train` can: bring it back and retry, or let it begin anew."""
    data = tmp_path / "data.txt"
    shutil.copy(corpus, data)
    ledger = Ledger(tmp_path / "own")
    ledger.add(jobs_of(SweepFile(base={**BASE, "data": str(data)})))
    (job,) = ledger.jobs()
    assert forked(lambda: work(ledger), "rename step-00000002:1") == -signal.SIGKILL
    data.write_text(data.read_text().replace("grid", "GRID"))
    work(ledger)
    standing = ledger.standing(job.name)
    own = ledger.folder / "jobs" / job.name
    assert standing.state is State.FAILED
    assert standing.last.exit.error.endswith(
        f": bring back what it was made with, and altcore sweep retry own {job.name} lets it go "
        f"on; or remove {own}, and altcore sweep run begins it anew"
    )
    if way == "anew":
        shutil.rmtree(own)
        ledger.add([job])
    else:
        shutil.copy(corpus, data)
        try_again(ledger, job.name, {})
    assert work(ledger) == 1
    assert states(ledger) == [State.COMPLETED]
    resumed = [e for e in lines_of(ledger.run_of(job.name), EVENTS) if e["event"] == "resume"]
    assert bool(resumed) == (way == "as it was")


def test_a_worker_that_wakes_up_too_late_is_refused(ledger):
    """Its job was taken over meanwhile, and has one result."""
    watch = Watch(lost_after=60)
    job = ledger.jobs()[0]
    late = ledger.take(job, watch)
    assert ledger.take(job, watch) is None
    worker = Worker(ledger, lost_after=60, tell=lambda _: None)
    worker._watch = Watch(lost_after=-1)  # to which every silent holder is lost
    worker.work()
    accepted = sorted(p.name for p in ledger.run_of(job.name).iterdir())
    ended = ledger.end(job, late, run_job(job, late))
    assert ended.status == "refused"
    assert sorted(p.name for p in ledger.run_of(job.name).iterdir()) == accepted
    assert ledger.standing(job.name).state is State.COMPLETED


@define(eq=False)
class Changer:
    """An intervention that changes what belongs to the process."""

    @hookimpl
    def run_start(self, run):
        torch.backends.mkldnn.enabled = False
        sys.setswitchinterval(2 * sys.getswitchinterval())
        torch.nn.functional.celu = lambda *_, **__: None
        os.chdir("/")


def test_a_job_changes_nothing_for_the_next_one(tmp_path, shelf, corpus, monkeypatch):
    """Whose data lie at a path that begins in the working directory."""
    shelf.install("intervention", "changer", Changer)
    monkeypatch.chdir(corpus.parent)
    monkeypatch.setattr(torch.nn.functional, "celu", torch.nn.functional.celu)  # put back
    variants = {"changer": {"plugins": ["changer"]}, "plain": {}}
    ledger = Ledger(tmp_path / "two")
    ledger.add(jobs_of(SweepFile(base={**BASE, "data": corpus.name}, variants=variants)))
    interval, lines = sys.getswitchinterval(), []
    work(ledger, note=lambda _: None, tell=lines.append)
    # What is not put back is told.
    told = (
        "changer-seed42 replaced torch.nn.functional.celu: later jobs of this worker may have other"
    )
    assert lines == [f"{told} numbers"]
    assert states(ledger) == [State.COMPLETED] * 2
    assert torch.backends.mkldnn.enabled
    assert sys.getswitchinterval() == interval


@define(eq=False)
class Slow:
    """A diagnostic that waits after a step."""

    seconds: float = setting(0.0, help="waited after step 2")

    @hookimpl
    def post_step(self, run, step):
        if step.index == 2:
            time.sleep(self.seconds)


def slow_sweep(tmp_path, shelf, corpus, seconds):
    shelf.install("diagnostic", "slow", Slow)
    keys = {**BASE, "data": str(corpus), "plugins": ["slow"], "slow.seconds": seconds}
    ledger = Ledger(tmp_path / "slow")
    ledger.add(jobs_of(SweepFile(base=keys)))
    return ledger, ledger.jobs()[0].name


def test_a_run_that_is_late_leaves_and_goes_on_once(tmp_path, shelf, corpus):
    """From its checkpoint: what a timeout ended may end otherwise. The worker goes on as well."""
    ledger, name = slow_sweep(tmp_path, shelf, corpus, 1.0)
    worker = Worker(ledger, lost_after=60, timeout=0.5, tell=lambda line: told(line))

    def told(line):
        # The next attempt has all the time that it needs.
        worker.timeout = None if "longer than" in line else worker.timeout

    assert worker.work() == 2
    first, second = ledger.standing(name).attempts
    assert (first.exit.status, second.exit.status) == ("timeout", "finished")
    assert first.exit.error == "it took longer than 0 s"
    assert summary_of(ledger.run_of(name))["steps"] == 4


def test_a_run_that_hangs_ends_its_worker(tmp_path, shelf, corpus):
    """Where the process is the worker's own; its attempt says why."""
    ledger, name = slow_sweep(tmp_path, shelf, corpus, 600.0)
    ended = forked(lambda: work(ledger, timeout=3.0, grace=0.2, is_own_process=True))
    assert ended == HANGS
    standing = ledger.standing(name)
    assert standing.last.exit.status == "timeout"
    assert 3.2 <= standing.last.exit.seconds < 30  # with the time in which it might have left
    assert standing.state is State.WAITING


def test_a_worker_that_stays_takes_jobs_that_are_added(ledger, monkeypatch):
    """Also one of a name that another job had, until it is told that there are no more."""
    first = ledger.jobs()[0]
    again = evolve(first, config={**first.config, "max_steps": 3})
    steps = iter([lambda: ledger.retire(first.name), lambda: ledger.add([again])])

    def stays():
        with suppress(StopIteration):
            next(steps)()
            return True
        return any(state is State.WAITING for state in states(ledger))

    monkeypatch.setattr(
        "altcore.sweep.worker.run_job", lambda job, *_, **__: Exit(status="failed", error="no")
    )
    assert work(ledger, stays=stays) == 3
    assert ledger.standing(first.name).state is State.FAILED
    assert work(ledger) == 0
