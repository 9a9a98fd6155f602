"""Workers on this machine: in the process, or each in its own, started again when they die."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from altcore.plugin import Interrupted, Placing
from altcore_executors.local import Local
from altcore_executors.pool import Pool, devices
from altcore_executors.processes import MOST_IDLE, Idle, start_worker

WORKER = """
import os, signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
(folder / f"began-{os.getpid()}").write_text(" ".join(
    [os.environ["OMP_NUM_THREADS"], os.environ.get("CUDA_VISIBLE_DEVICES", "")]))
{body}
"""


@pytest.fixture
def placing(tmp_path):
    """What an executor gets of a sweep whose workers run some lines of Python."""

    def make(body="", left=lambda: 1, look=lambda: None):
        told = []
        script = WORKER.replace("{body}", body)
        command = (sys.executable, "-S", "-c", script, str(tmp_path))
        made = Placing(
            folder=tmp_path,
            command=command,
            work=lambda: 5,
            left=left,
            attempts=lambda: 0,
            tell=told.append,
            look=look,
        )
        return made, told

    return make


def began(tmp_path):
    return sorted(path.read_text() for path in tmp_path.glob("began-*"))


def test_without_slots_it_is_the_process_of_the_command(placing, tmp_path):
    """The loop is called, and nothing is started."""
    calls = []
    made, _ = placing()
    Local().run(Placing(**{**_fields(made), "work": lambda: calls.append(1)}))
    assert calls == [1]
    assert not began(tmp_path)


def _fields(placing):
    return {a.name: getattr(placing, a.name) for a in Placing.__attrs_attrs__}


def test_slots_are_processes_that_share_the_threads(placing, tmp_path, monkeypatch):
    """And the GPUs, in turn."""
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    made, told = placing()
    Local(slots=3).run(made)
    assert began(tmp_path) == ["2 3", "2 3", "2 5"]
    assert told == []
    assert devices() == ["3", "5"]


def test_processes_for_each_gpu(placing, tmp_path, monkeypatch):
    """Two for each of two; without a GPU, as many as for one."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    made, _ = placing()
    Local(per_gpu=2).run(made)
    assert [line[-1] for line in began(tmp_path)] == ["0", "0", "1", "1"]


def test_workers_last_from_one_call_to_the_next(placing, tmp_path):
    """Until the context ends: they end with their standard input, each after its job."""
    counts = iter([1, 0, 1, 0, 0])
    body = "assert sys.argv[-1] == '--stay'; sys.stdin.read(); (folder / 'ended').touch()"
    made, told = placing(body, left=lambda: next(counts))
    local = Local(slots=2)
    with local.lasting():
        local.run(made)
        local.run(made)
        assert not (tmp_path / "ended").exists()
    assert (tmp_path / "ended").exists()
    assert len(began(tmp_path)) == 2
    assert told == []


def test_a_worker_that_dies_is_started_again(placing, tmp_path):
    """While jobs are left, and not for ever; each death is told with its log."""
    body = "os.kill(os.getpid(), signal.SIGKILL)"
    looks = []
    made, told = placing(body, look=lambda: looks.append(1))
    Pool(made, 1).run()
    assert len(began(tmp_path)) == len(told) == MOST_IDLE
    assert len(looks) >= MOST_IDLE
    assert "the worker of slot 0 ended with signal SIGKILL: see " in told[0]
    made, told = placing("sys.exit(3)", left=lambda: 0)
    Pool(made, 1).run()
    assert len(told) == 1
    assert "exit code 3" in told[0]


@pytest.mark.parametrize("end", ["", "os._exit(75)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_what_a_worker_started_ends_with_it(placing, tmp_path, end):
    """However it ended: it would go on beside the next one, on its memory and its GPU."""
    body = (
        "child = os.spawnlp(os.P_NOWAIT, 'sleep', 'sleep', '77')\n"
        f"(folder / 'child').write_text(str(child))\n{end}"
    )
    made, _ = placing(body, left=lambda: 0)
    Pool(made, 1).run()
    child = int((tmp_path / "child").read_text())
    until = time.monotonic() + 10
    while _lives(child):
        assert time.monotonic() < until
        time.sleep(0.01)


def _lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_deaths_count_as_long_as_nobody_makes_an_attempt():
    """A sweep of many jobs may lose many workers."""
    made = 0
    idle = Idle(lambda: made)
    for _ in range(9):
        assert idle.ends(MOST_IDLE - 2) < MOST_IDLE
        assert idle.may_start("signal SIGKILL")
        made += 1
        assert idle.may_start("") is True
        assert idle.may_start("") is False
        made += 1
        assert idle.ends() == 0
    assert idle.ends(MOST_IDLE - 1) == MOST_IDLE - 1
    assert not idle.may_start("signal SIGKILL")


def test_a_signal_is_passed_on_and_waited_for(placing, tmp_path):
    """The workers save what they have, and the process leaves with the signal's code."""
    body = (
        "signal.signal(signal.SIGTERM, lambda *a: ((folder / 'saved').touch(), os._exit(143)))\n"
        "(folder / 'ready').touch(); time.sleep(600)"
    )
    made, told = placing(body)
    child = os.fork()
    if not child:
        try:
            Pool(made, 1).run()
        except Interrupted as left:
            os._exit(left.exit_code)
        os._exit(0)
    until = time.monotonic() + 60
    while not (tmp_path / "ready").exists() and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 143
    assert (tmp_path / "saved").exists()
    assert told == []


def test_a_signal_while_workers_start_reaches_each(placing, tmp_path, monkeypatch):
    """The one that is being started gets it, and no other one is started."""
    from altcore_executors import pool

    made, _ = placing(body="time.sleep(600)")
    started = []

    def start(*args, **options):
        worker = start_worker(*args, **options)
        started.append(worker)
        signal.raise_signal(signal.SIGTERM)
        return worker

    monkeypatch.setattr(pool, "start_worker", start)
    with pytest.raises(Interrupted):
        Pool(made, 3).run()
    assert [worker.wait() for worker in started] == [-signal.SIGTERM]


def test_a_worker_knows_who_started_it(placing, tmp_path):
    made, _ = placing(body='(folder / "parent").write_text(os.environ["ALTCORE_EXECUTOR_PID"])')
    Pool(made, 1).run()
    assert (tmp_path / "parent").read_text() == str(os.getpid())
