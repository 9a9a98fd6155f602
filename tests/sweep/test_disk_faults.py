"""A disk that is full, or read-only for a while, costs a sweep nothing but time."""

import errno
import time
from os import strerror
from pathlib import Path

import pytest
from helpers_disks import full_disk, raising
from helpers_sweep_faults import bits_of, check_complete, toy, work

from altcore import durable
from altcore.errors import NoSpace
from altcore.sweep import State, Watch, run_job, worker

KINDS = ("bytes", "inodes", "read-only")


@pytest.fixture(scope="module")
def kit(tmp_path_factory, corpus):
    """Return a maker of the sweep of one job, what it asks of a disk, and its run's bits."""
    folder = tmp_path_factory.mktemp("disks")
    asked = {}

    def make(name):
        return toy(folder / name, corpus)

    for kind in KINDS:
        ledger = make(f"asks-{kind}")
        with full_disk(kind, 10**12) as asked[kind]:
            work(ledger)
    return make, asked, bits_of(ledger)


@pytest.fixture(autouse=True)
def _short_patience(monkeypatch):
    monkeypatch.setattr(worker, "PAUSE", 0.01)
    monkeypatch.setattr(worker, "PATIENCE", 0.0)


def check(kit, kind, call):
    """Let the disk be full from a call on, so that the worker leaves; then let it have room."""
    make, asked, undisturbed = kit
    sizes = asked[kind]
    room = sum(sizes[:call]) + sizes[call] // 2 if kind == "bytes" else call
    ledger = make(f"{kind}-{call}")
    # Without waiting: a job that the worker could not end would be lost to itself only later.
    with full_disk(kind, room), pytest.raises(NoSpace, match=str(ledger.folder)):
        work(ledger, waits=False)
    work(ledger, lost_after=0.0)  # as if another process went on
    check_complete(ledger, undisturbed)


@pytest.mark.parametrize("share", range(15))
def test_a_full_disk_costs_a_sweep_nothing(kit, share):
    """By bytes, by inodes, and one that is read-only: five calls of each, in a job's whole life.

    While it is leased, while the run writes, and while its end is written and it is published.
    """
    kind = KINDS[share % 3]
    check(kit, kind, share // 3 * (len(kit[1][kind]) - 1) // 4)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_is_full_at_any_call_costs_a_sweep_nothing(kit, kind):
    """At every one of them."""
    for call in range(len(kit[1][kind])):
        check(kit, kind, call)


def test_a_worker_waits_for_its_disk(kit, monkeypatch):
    """It tells why, and goes on by itself when the folder can be written again."""
    make, _, undisturbed = kit
    ledger, told, slept = make("waits"), [], []
    real = durable.make_folder
    monkeypatch.setattr(worker, "PATIENCE", 100.0)
    monkeypatch.setattr(durable, "make_folder", lambda path: raising(errno.EROFS, path))

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 9:
            monkeypatch.setattr(durable, "make_folder", real)

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(worker, "PAUSE", 1.0)
    work(ledger, tell=told.append)
    check_complete(ledger, undisturbed)
    # Every other one is between two looks, and the last ones are the run's.
    assert slept[:9:2] == [1.0, 1.0, 2.0, 4.0, 8.0]
    assert f"a read-only file system to write {ledger.folder}" in told[0]
    assert len(ledger.standing(ledger.names()[0]).attempts) == 1


def denied_once(monkeypatch, is_denied):
    """Let the system deny, for the first time, to make a folder that fits."""
    real, denied = durable.make_folder, []

    def make(path):
        if not denied and is_denied(path):
            denied.append(path)
            raising(errno.EACCES, path)
        real(path)

    monkeypatch.setattr(durable, "make_folder", make)


@pytest.mark.parametrize("place", ["step-00000002", "base-seed42"])
def test_a_run_whose_folder_may_not_be_written_for_a_while_is_waited_for(kit, monkeypatch, place):
    """In its course or at its begin: the job has not failed, and goes on from where it was."""
    make, _, undisturbed = kit
    ledger, told = make(f"denied-{place}"), []
    monkeypatch.setattr(worker, "PATIENCE", 100.0)
    denied_once(monkeypatch, lambda path: "work" in path.parts and path.name.startswith(place))
    work(ledger, tell=told.append)
    check_complete(ledger, undisturbed)
    (name,) = ledger.names()
    ends = [attempt.exit.status for attempt in ledger.standing(name).attempts]
    assert ends == ["interrupted", "finished"]
    assert any("Permission denied" in line and "waiting" in line for line in told)


def test_a_folder_that_stays_denied_ends_the_worker_as_a_full_disk_does(kit, monkeypatch):
    """With the exit code of one."""
    ledger = kit[0]("stays-denied")
    denied_once(monkeypatch, lambda path: path.name.startswith("step-00000002"))
    with pytest.raises(NoSpace, match="Permission denied"):
        work(ledger)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_run_whose_disk_fails_for_a_moment_is_waited_for(kit, monkeypatch, number):
    """As on a server that is gone for a while: the job has not failed, and goes on."""
    make, _, undisturbed = kit
    ledger, told, failed = make(f"fails-{number}"), [], []
    real = durable.fsync
    monkeypatch.setattr(worker, "PATIENCE", 100.0)

    def fsync(descriptor):
        place = Path(f"/proc/self/fd/{descriptor}").readlink()
        if not failed and "step-00000002" in str(place):
            failed.append(place)
            raise OSError(number, strerror(number))
        real(descriptor)

    monkeypatch.setattr(durable, "fsync", fsync)
    work(ledger, tell=told.append)
    check_complete(ledger, undisturbed)
    (name,) = ledger.names()
    ends = [(a.exit.status, a.exit.cause) for a in ledger.standing(name).attempts]
    assert ends == [("interrupted", ""), ("finished", "")]
    assert any(strerror(number) in line and "waiting" in line for line in told)


def test_other_files_that_may_not_be_read_fail_the_job(tmp_path):
    """They are what the job asks for: nothing is waited for."""
    error = PermissionError(errno.EACCES, "no", str(tmp_path / "data"))
    assert run_job._denied(error, tmp_path / "jobs" / "a") is None
    assert run_job._denied(ValueError(), tmp_path) is None
    outer = ValueError()
    outer.__cause__ = error
    assert run_job._denied(outer, tmp_path) is error


def test_the_heart_beats_on_when_the_disk_has_room_again(kit, monkeypatch):
    """A beat that could not be written ends neither the run nor the beating."""
    ledger = kit[0]("beats")
    held = ledger.take(ledger.jobs()[0], Watch(60))
    real, failed = durable.rename, []

    def full(path, target):
        if target.name == "heartbeat" and len(failed) < 3:
            failed.append(1)
            raising(errno.ENOSPC, path)
        real(path, target)

    monkeypatch.setattr(durable, "rename", full)
    with held.beating(lost_after=0.06):
        last = time.monotonic() + 30
        while not held.attempt.heartbeat and time.monotonic() < last:
            time.sleep(0.01)
    assert int(held.attempt.heartbeat) > 3
    assert ledger.standing(ledger.names()[0]).state is State.RUNNING
