"""Workers that sleep, disagree about the time, work side by side or are ended by their own jobs."""

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from attrs import define, evolve
from helpers_crashes import ended, forked
from helpers_sweep_faults import bits_of, check_complete, started, toy, work

from altcore.errors import NoSpace
from altcore.plugin import hookimpl, setting
from altcore.processes import this_process
from altcore.runs import METRICS, read_json
from altcore.signals import handle_signals, handling_signals
from altcore.sweep import Ledger, State, SweepFile, Watch, jobs_of, worker
from altcore.yaml_files import read_mapping

STEP = 2
"""The step in which plugins of these tests do what they do."""


@define(eq=False)
class Trouble:
    """A diagnostic that does something after a step of the first attempt."""

    what: str = setting("", help="stop, exit, leave or grow")

    @hookimpl
    def post_step(self, run, step):
        first = "/001/" in str(run.directory)
        if step.index == STEP and (first or self.what != "stop"):
            getattr(self, self.what)()

    def stop(self):
        os.kill(os.getpid(), signal.SIGSTOP)

    def exit(self):
        os._exit(0)

    def leave(self):
        sys.exit(0)


@pytest.fixture
def troubled(tmp_path, shelf, corpus):
    """Return a maker of a sweep whose runs have the plugin, and of one that nobody disturbs."""
    shelf.install("diagnostic", "trouble", Trouble)

    def make(what, **keys):
        plugin = {"plugins": ["trouble"], "trouble.what": what} if what else {}
        return toy(tmp_path / (what or "whole"), corpus, {**plugin, **keys})

    return make


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(worker, "PAUSE", 0.05)


def state_of(ledger):
    (name,) = ledger.names()
    return ledger.standing(name)


def until(is_so, seconds=60):
    last = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < last
        time.sleep(0.01)


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_stopped_worker_that_wakes_is_refused(troubled):
    """Another one went on from its checkpoint meanwhile, and the accepted run stays as it is."""
    undisturbed = troubled("")
    work(undisturbed)
    ledger = troubled("stop")
    child = started(lambda: work(ledger, lost_after=0.1))
    assert os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1])
    work(ledger, lost_after=0.1)
    (name,) = ledger.names()
    accepted = files(ledger.run_of(name))
    os.kill(child, signal.SIGCONT)
    assert ended(child) == 0
    assert files(ledger.run_of(name)) == accepted
    assert [a.exit.status for a in state_of(ledger).attempts] == ["lost", "finished"]
    assert bits_of(ledger) == bits_of(undisturbed)


@pytest.mark.parametrize("ahead", [-3600.0, 3600.0])
def test_clocks_an_hour_apart_make_no_difference(tmp_path, corpus, monkeypatch, ahead):
    """Neither to who is lost, nor to who is not: no clock of another process is compared."""
    ledger = toy(tmp_path / "toy", corpus)
    (job,) = ledger.jobs()
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + ahead)
    began = threading.Event()

    def hold():
        held = ledger.take(job, Watch(0.6))
        with held.beating(0.6):
            began.set()
            time.sleep(1.3)

    holder = threading.Thread(target=hold)
    holder.start()
    assert began.wait(60)
    monkeypatch.setattr(time, "time", now)
    (attempt,) = ledger.standing(job.name).attempts
    monkeypatch.setattr(type(attempt.lease.process), "is_gone", lambda _: None)
    watch = Watch(0.6)
    while holder.is_alive():
        assert not watch.is_lost(attempt)
        time.sleep(0.01)
    until(lambda: watch.is_lost(attempt))
    work(ledger, lost_after=0.1)
    assert state_of(ledger).state is State.COMPLETED


LOOK = """
import sys
from pathlib import Path
from altcore.sweep.attempt import Attempt
print(Attempt(Path(sys.argv[1])).lease.process.is_gone())
"""


def test_a_process_in_a_time_namespace_an_hour_apart_is_not_gone(tmp_path, corpus):
    """There the kernel tells another start of the same process, so nothing is concluded from it."""
    shifted = ["unshare", "--time", "--boottime", "3600", "--monotonic", "3600"]
    if subprocess.run([*shifted, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no right to make a time namespace")
    ledger = toy(tmp_path / "toy", corpus)
    held = ledger.take(ledger.jobs()[0], Watch(60))
    look = [sys.executable, "-c", LOOK, str(held.attempt.folder)]
    told = [subprocess.check_output([*own, *look], text=True).strip() for own in ([], shifted)]
    assert told == ["False", "None"]


def test_two_supervisors_at_once_share_the_work(tmp_path, corpus):
    """Both begin the same sweep at the same time; each job has one result."""
    undisturbed = toy(tmp_path / "whole", corpus, seeds=4)
    work(undisturbed)

    def begin():
        work(toy(tmp_path / "toy", corpus, seeds=4))

    children = [started(begin) for _ in range(2)]
    assert [ended(child) for child in children] == [0, 0]
    ledger = Ledger(tmp_path / "toy")
    check_complete(ledger, bits_of(undisturbed))
    assert all(len(ledger.standing(name).attempts) == 1 for name in ledger.names())


def test_a_job_that_ends_its_process_with_code_0_is_never_complete(troubled):
    """By os._exit, always after the same checkpoint: the third lost worker is the last."""
    ledger = troubled("exit")
    for _ in range(3):
        assert forked(lambda: work(ledger)) == 0
        assert state_of(ledger).state is State.RUNNING
    assert work(ledger) == 0
    assert state_of(ledger).state is State.FAILED
    assert "it lost 3 workers in a row" in state_of(ledger).decision.why
    assert [a.exit.checkpoint for a in state_of(ledger).attempts] == [1, 1, 1]
    assert not list(ledger.folder.glob("runs/*"))


def test_a_job_that_asks_to_leave_with_code_0_has_failed(tmp_path, shelf, corpus):
    """By sys.exit, in a plugin that decides: the worker goes on, and the error says so."""
    shelf.install("intervention", "trouble", Trouble)
    keys = {"plugins": ["trouble"], "trouble.what": "leave"}
    ledger = toy(tmp_path / "leave", corpus, keys)
    assert work(ledger) == 1
    assert state_of(ledger).state is State.FAILED
    assert "SystemExit" in state_of(ledger).last.exit.error
    assert not list(ledger.folder.glob("runs/*"))


@define(eq=False)
class Stuck:
    """A workload that never gets built."""

    def build(self, seed, device):
        time.sleep(600)


def test_a_job_that_hangs_before_its_first_step_is_late(tmp_path, shelf):
    """Where no run reads what a signal asked for: it is no lost worker, and is tried once more."""
    shelf.install("workload", "stuck", Stuck)
    ledger = Ledger(tmp_path / "stuck")
    ledger.add(jobs_of(SweepFile(base={"workload": "stuck"})))
    for state in (State.WAITING, State.FAILED):
        late = {"timeout": 0.2, "grace": 0.2, "is_own_process": True}
        assert forked(lambda late=late: work(ledger, **late)) == 75
        assert state_of(ledger).last.exit.status == "timeout"
        assert state_of(ledger).state is state


@define(eq=False)
class Hungry:
    """A diagnostic that needs memory for each sequence of a batch."""

    @hookimpl
    def post_step(self, run, step):
        size = run.workload.facts["batch_size"]
        torch.empty(size << 24).fill_(1)  # 64 MB each


def test_a_job_with_too_little_memory_halves_the_batch_that_its_workload_chose(
    tmp_path, shelf, corpus
):
    """Under a limit of the system; the job itself does not say how large a batch is."""
    shelf.install("intervention", "hungry", Hungry)
    rule = {"out_of_memory": {"halve": {"batch_size": 1}}}
    ledger = toy(tmp_path / "toy", corpus, {"plugins": ["hungry"]}, retry=rule)
    (job,) = ledger.jobs()
    assert "batch_size" not in job.config["settings"]["gpt"]

    def limited():
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + (5 << 26), resource.RLIM_INFINITY))
        work(ledger)

    assert forked(limited) == 0
    first, second = state_of(ledger).attempts
    assert (first.exit.status, first.exit.cause) == ("failed", "out_of_memory")
    assert first.exit.settings["gpt.batch_size"] == 8
    assert second.lease.changed == {"gpt.batch_size": 4}
    assert second.exit.status == "finished"
    run = ledger.run_of(job.name)
    assert read_json(run / "environment.json")["workload_facts"]["batch_size"] == 4
    assert read_mapping(run / "config.yaml", "config")["tags"] == ["retry"]
    assert len((run / METRICS).read_text().splitlines()) >= 3


def test_only_a_worker_that_an_executor_started_ends_with_it(tmp_path, corpus):
    """One that was started by hand goes on behind nohup, when its shell goes away."""
    ledger = toy(tmp_path / "toy", corpus)
    gone = started(lambda: None)
    os.waitpid(gone, 0)
    assert work(ledger, executor_pid=gone) == 0
    assert work(ledger, executor_pid=os.getppid()) == 1


def test_a_process_that_is_hidden_is_not_gone(monkeypatch):
    """As those of other users are where /proc is mounted with hidepid."""
    here = this_process()
    monkeypatch.setattr(Path, "read_text", lambda _: (_ for _ in ()).throw(FileNotFoundError))
    assert here.is_gone() is None
    child = started(lambda: None)
    os.waitpid(child, 0)
    assert evolve(here, pid=child).is_gone() is True


def test_a_worker_whose_log_is_on_the_full_disk_waits_all_the_same(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(time, "sleep", lambda _: None)
    one = worker.Worker(None, 60.0, tell=full)
    one._wait_for_disk(NoSpace("the disk is full"))
    assert one._waited == worker.PAUSE


@pytest.mark.parametrize("times", [1, 2])
def test_a_worker_that_leaves_at_once_ends_its_attempt(tmp_path, corpus, monkeypatch, times):
    """Before its first step, as while torch is imported, or asked twice: its job waits again."""
    ledger = toy(tmp_path / "toy", corpus)

    def run_job(*_, **__):
        with handling_signals() as handled:
            handled.is_waiting = times > 1
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(worker, "run_job", run_job)

    def works():
        handle_signals()
        work(ledger)

    assert forked(works) == 128 + signal.SIGINT
    (name,) = ledger.names()
    standing = ledger.standing(name)
    assert standing.state is State.WAITING
    assert standing.last.exit.status == "interrupted"
    assert standing.last.exit.error == "SIGINT: left at once"
