"""A lease is won once, and an attempt that was taken over publishes nothing."""

import json
import math
import os
import shutil
import threading
import time
from multiprocessing import get_context

import pytest
from attrs import evolve
from helpers_sweeps import ledger_of

from altcore.errors import BadInput
from altcore.sweep import State, Watch
from altcore.sweep.attempt import Attempt, attempts_in, lease
from altcore.sweep.exits import Exit


@pytest.fixture(autouse=True)
def _job(tmp_path):
    """Where a job's attempts are, as the ledger makes it."""
    for folder in (tmp_path, tmp_path / "job"):
        (folder / "attempts").mkdir(parents=True)


def winners(folder, number, count):
    """Let threads race for one attempt; return the leases that were won."""
    won, start = [], threading.Barrier(count)

    def race():
        start.wait()
        if (held := lease(folder, number, {})) is not None:
            won.append(held)

    threads = [threading.Thread(target=race) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return won


def test_a_lease_is_won_once(tmp_path):
    """By one of many that try at the same time, and never again."""
    for number in range(1, 40):
        (held,) = winners(tmp_path, number, 4)
        assert held.attempt.number == number
        assert held.attempt.lease == held.lease
        assert lease(tmp_path, number, {}) is None
    assert [a.number for a in attempts_in(tmp_path)] == list(range(1, 40))
    # What the losers made is gone.
    assert len(list((tmp_path / "attempts").iterdir())) == 39


def test_numbers_that_json_does_not_have_are_kept(tmp_path):
    """As strict JSON, which any program reads: a retry may be told a clip that never cuts."""
    own = {"grad_clip": math.inf, "limits": [-math.inf, 1.0]}
    held = lease(tmp_path, 1, own)
    held.attempt.follow(own)
    held.attempt.end(Exit(status="failed", settings=own))

    def refuse(word):
        raise AssertionError(word)

    for path in held.attempt.folder.glob("*.json"):
        json.loads(path.read_text(), parse_constant=refuse)
    found = Attempt(held.attempt.folder)
    assert found.lease.changed == found.again == found.exit.settings == own


def _race(folder, numbers, start, won):
    start.wait()
    for number in numbers:
        held = lease(folder, number, {})
        if held is not None:
            won.put((number, held.lease.token))


@pytest.mark.parametrize(
    "attempts",
    [
        pytest.param(100, marks=pytest.mark.faults(400)),
        pytest.param(2500, marks=[pytest.mark.slow, pytest.mark.faults(10_000)]),
    ],
)
def test_no_lease_is_won_twice(tmp_path, attempts):
    """Four processes race for each attempt."""
    context = get_context("fork")
    start, won = context.Barrier(4), context.Queue()
    numbers = range(1, attempts + 1)
    racing = [context.Process(target=_race, args=(tmp_path, numbers, start, won)) for _ in range(4)]
    for process in racing:
        process.start()
    found = [won.get(timeout=300) for _ in numbers]
    for process in racing:
        process.join()
    assert won.empty()
    assert sorted(number for number, _ in found) == list(numbers)
    for number, token in found:
        assert Attempt(tmp_path / "attempts" / f"{number:03}").lease.token == token


def test_a_lease_makes_no_job_anew(tmp_path):
    """One that was taken out of its sweep a moment ago stays out, and nothing is left behind."""
    assert lease(tmp_path / "gone", 1, {}) is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["attempts", "job"]


def published(tmp_path):
    """Lease an attempt that has made a run; return it and where the run is to be published."""
    held = lease(tmp_path / "job", 1, {})
    (held.attempt.work / "job").mkdir()
    (held.attempt.work / "job" / "summary.json").write_text("{}")
    (tmp_path / "runs").mkdir()
    return held, tmp_path / "runs" / "job"


def test_a_run_is_published_once(tmp_path):
    """And whoever comes second is refused."""
    held, target = published(tmp_path)
    assert held.publish("job", target)
    assert (target / "summary.json").is_file()
    (held.attempt.work / "job").mkdir()
    assert not held.publish("job", target)
    assert [p.name for p in target.iterdir()] == ["summary.json"]


def test_an_attempt_that_was_taken_over_publishes_nothing(tmp_path):
    """Nor if its holder made its folder anew, as a run's start does."""
    held, target = published(tmp_path)
    held.attempt.take_over()
    held.attempt.take_over()  # by a second process at the same time
    assert not held.publish("job", target)
    (held.attempt.work / "job").mkdir(parents=True)
    assert not held.publish("job", target)
    assert not target.exists()
    assert held.attempt.run_directory("job").is_dir()


def test_both_folders_of_an_attempt_are_named(tmp_path):
    """They are no full disk, for which a worker would wait."""
    held, _ = published(tmp_path)
    shutil.copytree(held.attempt.work, held.attempt.folder / "taken")
    with pytest.raises(BadInput, match=f"{held.attempt.folder} has both work and taken"):
        held.attempt.take_over()


def test_a_job_that_moves_its_own_folder_is_lost_by_its_own_fault(tmp_path):
    """Nobody took it over. It is tried twice more, and then given up."""
    ledger = ledger_of(tmp_path)
    job, seen = ledger.jobs()[0], []
    while len(seen) < 5 and (held := ledger.take(job, Watch(60))) is not None:
        work = held.attempt.work
        work.rename(work.with_name("aside"))
        seen.append(ledger.end(job, held, Exit(status="failed", error="no such file")))
        work.with_name("aside").rename(work)
    assert [ended.status for ended in seen] == ["lost"] * 3
    assert f"{work} was moved or replaced" in seen[-1].error
    assert ledger.standing(job.name).state is State.FAILED


def test_a_failure_to_publish_is_no_refusal(tmp_path):
    """Where the folder of the results is gone, the error is raised and the run stays."""
    held, target = published(tmp_path)
    target.parent.rmdir()
    with pytest.raises(FileNotFoundError):
        held.publish("job", target)
    assert (held.attempt.work / "job").is_dir()


def test_a_holder_is_lost_when_it_ends(tmp_path):
    """At once on the same machine; one that lives and counts is not lost."""
    child = os.fork()
    if not child:
        lease(tmp_path, 1, {})
        os._exit(0)
    os.waitpid(child, 0)
    watch = Watch(lost_after=60)
    assert watch.is_lost(attempts_in(tmp_path)[0])
    mine = lease(tmp_path, 2, {}).attempt
    assert not watch.is_lost(mine)


def test_a_holder_elsewhere_is_lost_when_it_is_silent(tmp_path, monkeypatch):
    """By the watcher's own clock, whatever the other one says; a heartbeat begins anew."""
    held = lease(tmp_path, 1, {})
    other = evolve(held.lease.process, machine="another", pid=1)
    monkeypatch.setattr(Attempt, "lease", evolve(held.lease, process=other, began=0.0))
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    watch = Watch(lost_after=60)
    assert not watch.is_lost(held.attempt)
    now += 59
    assert not watch.is_lost(held.attempt)
    (held.attempt.folder / "heartbeat").write_text("7")
    now += 59
    assert not watch.is_lost(held.attempt)
    now += 61
    assert watch.is_lost(held.attempt)


def test_the_heartbeat_counts_while_it_is_held(tmp_path):
    """Six times in the time after which a silent holder is lost."""
    held = lease(tmp_path, 1, {})
    with held.beating(lost_after=0.06):
        seen = set()
        until = time.monotonic() + 30
        while len(seen) < 3 and time.monotonic() < until:
            seen.add(held.attempt.heartbeat)
    assert len(seen) >= 3
    assert not [t for t in threading.enumerate() if t.name == "altcore heartbeat"]


def test_files_that_were_changed_are_named(tmp_path):
    """A lease and an exit record that no sweep wrote."""
    attempt = lease(tmp_path, 1, {}).attempt
    assert attempt.exit is None
    attempt.end(Exit(status="failed", error="no"))
    assert attempt.exit == Exit(status="failed", error="no")
    (attempt.folder / "exit.json").write_text('{"statu": "finished"}')
    with pytest.raises(BadInput, match=r"exit\.json is not what a sweep writes"):
        _ = attempt.exit
    (attempt.folder / "lease.json").write_text("[]")
    with pytest.raises(BadInput, match=r"lease\.json"):
        _ = attempt.lease
