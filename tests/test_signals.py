"""Signals to real processes: when they come, what is left, and how it is told."""

import ctypes
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
from attrs import define
from helpers_cli import TINY, distribution, run
from helpers_crashes import ended, forked, forked_command
from helpers_processes import SOURCES, install, started, wait_for

from altcore import hook_clock, hookimpl
from altcore.cli.threads import still_running
from altcore.errors import EXIT_CODES
from altcore.runs import summary_of
from altcore.signals import (
    WATCHED,
    LeaveNow,
    Signals,
    handle_signals,
    handling_signals,
    is_from_signal,
)

ENDLESS = ("--steps", "100000", "--name", "mine")


def steps(tmp_path):
    """Whether the run has made a step."""
    metrics = tmp_path / "runs/mine/metrics.jsonl"
    return metrics.exists() and metrics.stat().st_size > 0


def wait_until(what):
    """Wait for something that another process does."""
    deadline = time.monotonic() + 90
    while not what() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert what()


@pytest.mark.slow
@pytest.mark.parametrize("number", WATCHED, ids=lambda n: n.name)
def test_a_signal_leaves_after_a_checkpoint(number, tmp_path, corpus):
    """Within five seconds, with its own exit code and no traceback; the run can be resumed."""
    with started(tmp_path, corpus, *ENDLESS) as process:
        wait_for(lambda: steps(tmp_path), process)
        began = time.time()
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    saved = max((tmp_path / "runs/mine/checkpoints").glob("step-*/manifest.json"))
    assert saved.stat().st_mtime - began < 5
    assert process.returncode == 128 + number
    assert process.returncode in EXIT_CODES
    assert err.splitlines()[-1] == f"altcore: {number.name}: left after a checkpoint"
    assert "Traceback" not in err
    summary = summary_of(tmp_path / "runs/mine")
    assert (summary["status"], summary["steps"] > 0) == ("interrupted", True)
    again = run(
        "train", "--resume", "mine", "--steps", summary["steps"] + 1, cwd=tmp_path, path=SOURCES
    )
    assert again.code == 0, again.err


@pytest.mark.slow
def test_a_second_interrupt_leaves_at_once(tmp_path, corpus):
    """Even if a plugin holds on to the exception; the last checkpoint is named."""
    body = """
        @hookimpl
        def post_step(self, step):
            while step.index > 2:
                try:
                    time.sleep(60)
                except BaseException:
                    pass
    """
    arguments = (*install(tmp_path / "site", body), "--set", "checkpoint_interval=1")
    with started(tmp_path, corpus, *ENDLESS, *arguments, path=[tmp_path / "site"]) as process:
        last = tmp_path / "runs/mine/checkpoints/step-00000002"
        wait_for((last / "manifest.json").exists, process)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert any("leaving after this step" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    named = "the last checkpoint is runs/mine/checkpoints/step-00000002: --resume mine goes on"
    assert err.startswith("altcore: SIGINT: left at once; ")
    assert named in err.replace(f"{tmp_path}/", "")


def sleep_on(step):
    """Hang for a minute, and hold on to whatever would end it."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with suppress(BaseException):
            time.sleep(1)


def wait_in_c(step):
    """Hang in C code that lets other threads run, but no handler of signals."""
    mutex = ctypes.create_string_buffer(64)
    lock = ctypes.CDLL(None).pthread_mutex_lock
    lock(mutex)
    lock(mutex)


def hanging(hang, hook="post_step"):
    """Return a reporter that hangs from the third step on, or when the run is over."""

    def act(self, run):
        if run.step == 3:
            (run.directory / "there").touch()
            hang(run.step)

    act.__name__ = hook
    return define(eq=False)(type("Hangs", (), {hook: hookimpl(act)}))


@pytest.fixture
def impatient(monkeypatch):
    """Let a signal wait for hooks a moment only; a forked run finds everything imported."""
    for module in ("altcore.engine.setup", "altcore_workloads.gpt"):
        importlib.import_module(module)
    monkeypatch.setattr(hook_clock, "LEAST_PATIENCE", 0.2)
    monkeypatch.setattr(hook_clock, "PATIENCE", {"run_end": 0.3})


@pytest.mark.parametrize(
    ("hang", "hook"),
    [(sleep_on, "post_step"), (wait_in_c, "post_step"), (sleep_on, "run_end")],
    ids=["sleeps", "waits in C", "sleeps at the end"],
)
def test_a_hook_that_hangs_does_not_keep_a_run_from_leaving(
    hang, hook, shelf, corpus, tmp_path, impatient
):
    """It is named with its stack, and so is the last checkpoint; the exit code is the signal's."""
    shelf.install("reporter", "hangs", hanging(hang, hook))
    arguments = ["train", *TINY, "--data", str(corpus), "--name", "mine", "--steps", "3"]
    arguments += ["--plugin", "hangs", "--set", "checkpoint_interval=2", "--device", "cpu"]
    with (tmp_path / "err").open("w") as err:
        child = forked_command(tmp_path, arguments, err)
        wait_until((tmp_path / "runs/mine/there").exists)
        os.kill(child, signal.SIGTERM)
        code = ended(child)
    said = (tmp_path / "err").read_text()
    assert code == 128 + signal.SIGTERM, said
    last = 2 if hook == "post_step" else 3
    assert f", in {hang.__name__}" in said
    line = said.splitlines()[-1]
    named = f"reporter hangs (acme-hangs 1.2.3) has been in {hook} for "
    assert line.startswith(f"altcore: SIGTERM: left at once: {named}")
    assert line.endswith(f"step-0000000{last}: --resume mine goes on from there")


def test_a_hook_that_hangs_is_left_from_python_too(shelf, start, impatient, capsys):
    """By an exception in it, since the process is the caller's."""

    def ask(step):
        signal.raise_signal(signal.SIGTERM)
        time.sleep(60)

    shelf.install("reporter", "hangs", hanging(ask))
    with pytest.raises(LeaveNow, match="SIGTERM"):
        start(["hangs"], name="r", max_steps=5)
    assert ", in ask" in capsys.readouterr().err
    assert summary_of(start.runs / "r")["status"] == "interrupted"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("delay", [0.15, 0.6, 1.2])
def test_a_signal_before_the_first_step(number, delay, tmp_path, corpus):
    """Also during imports there is no traceback, and the run can be started again by its name."""
    marks = ("--steps", "2", "--name", "mine")
    with started(tmp_path, corpus, *marks) as process:
        time.sleep(delay)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode in (128 + number, 0)
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_signal_while_a_plugin_is_imported(tmp_path, corpus):
    """Nobody's failure, and nothing is written."""
    module = "import pathlib, time\npathlib.Path('there').touch()\ntime.sleep(60)\n"
    points = {"diagnostic": {"slow": "acme_slow:Plugin"}}
    distribution(tmp_path / "site", "acme-slow", points, acme_slow=module)
    arguments = (*ENDLESS, "--plugin", "slow")
    with started(tmp_path, corpus, *arguments, path=[tmp_path / "site"]) as process:
        wait_for((tmp_path / "there").exists, process)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (143, "altcore: SIGTERM: left at once\n")
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_the_run_ends(number, tmp_path, corpus):
    """The end is written before anything else, and the exit code is still the signal's."""
    body = f"""
        @hookimpl
        def run_end(self):
            os.kill(os.getpid(), signal.Signals.{number.name})
    """
    arguments = ("--steps", "2", "--name", "mine", *install(tmp_path / "site", body))
    with started(tmp_path, corpus, *arguments, path=[tmp_path / "site"]) as process:
        _, err = process.communicate(timeout=90)
    assert process.returncode == 128 + number
    assert err.splitlines()[-1] == f"altcore: {number.name}: left when the run was over"
    assert summary_of(tmp_path / "runs/mine")["status"] == "finished"


@pytest.mark.slow
def test_nohup_protects_from_the_end_of_a_terminal(tmp_path, corpus):
    """SIGHUP is ignored then."""
    marks = ("--steps", "40", "--name", "mine")
    with started(tmp_path, corpus, *marks, before=["nohup"]) as process:
        wait_for(lambda: steps(tmp_path), process)
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=90)
    assert process.returncode == 0
    assert summary_of(tmp_path / "runs/mine")["status"] == "finished"


WORKER = """
        def __attrs_post_init__(self):
            pass

        @hookimpl
        def run_start(self, run):
            import multiprocessing
            context = multiprocessing.get_context(METHOD)
            worker = context.Process(target=time.sleep, args=(600,))
            worker.start()
            (run.directory / "worker").write_text(str(worker.pid))

        @hookimpl
        def run_end(self, run):
            import multiprocessing
            (worker,) = multiprocessing.active_children()
            (run.directory / "alive").touch()
            worker.terminate()
            worker.join()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "number"),
    [
        *(("fork", n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)),
        ("spawn", signal.SIGINT),
        ("forkserver", signal.SIGHUP),
    ],
)
def test_a_worker_leaves_its_end_to_the_run(method, number, tmp_path, corpus):
    """A signal for the whole process group does not take the workers from a run that leaves."""
    body = WORKER.replace("METHOD", repr(method))
    arguments = install(tmp_path / "site", body, "forks", "reporter")
    with started(tmp_path, corpus, *ENDLESS, *arguments, path=[tmp_path / "site"]) as process:
        wait_for(lambda: steps(tmp_path), process)
        os.killpg(process.pid, number)
        _, err = process.communicate(timeout=90)
    assert process.returncode == 128 + number, err
    assert (tmp_path / "runs/mine/alive").exists()
    worker = int((tmp_path / "runs/mine/worker").read_text())
    assert not Path(f"/proc/{worker}").exists()


def test_a_spawned_child_is_deaf_to_signals_for_the_group():
    """Only while signals are handled; SIGTERM ends it at any time."""
    context = multiprocessing.get_context("spawn")
    for is_handled in (True, False):
        child = context.Process(target=time.sleep, args=(60,))
        with handling_signals() if is_handled else nullcontext():
            child.start()
            assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()), "the parent hears all"
        status = Path(f"/proc/{child.pid}/status").read_text()
        mask = int(status.partition("SigBlk:")[2].split()[0], 16)
        deaf = [number for number in WATCHED if mask >> (number - 1) & 1]
        assert deaf == ([n for n in WATCHED if n != signal.SIGTERM] if is_handled else [])
        child.terminate()
        child.join(30)
        assert child.exitcode == -signal.SIGTERM


def test_every_signal_has_its_exit_code():
    """In the published table."""
    assert {128 + number for number in WATCHED} <= EXIT_CODES.keys()


def test_what_comes_from_a_signal():
    """Within the handlers' reach only what they raise; outside Python's own exception, too."""
    assert is_from_signal(KeyboardInterrupt())
    with handling_signals():
        assert not is_from_signal(KeyboardInterrupt())
        assert is_from_signal(LeaveNow())


def test_what_a_forked_child_hears_is_its_own():
    """Though it inherits the pipe by which the run hears of signals."""

    def hear():
        signal.signal(signal.SIGUSR1, lambda *_: None)
        signal.raise_signal(signal.SIGUSR1)

    def act():
        handle_signals()
        with handling_signals() as signals:
            signals.is_waiting = True
            assert forked(hear) == 0
            signals.hear()
            assert signals.asked == 0

    assert forked(act) == 0


def test_handlers_are_put_back():
    """Whatever they were, and also by an inner context that shares them."""
    before = [signal.getsignal(number) for number in WATCHED]
    with handling_signals() as outer, handling_signals() as inner:
        assert inner is outer
        with pytest.raises(LeaveNow, match="SIGTERM"):
            signal.raise_signal(signal.SIGTERM)
    assert [signal.getsignal(number) for number in WATCHED] == before


@pytest.mark.parametrize(("ranks", "number"), [(2, signal.SIGTERM), (2, signal.SIGINT), (1, 15)])
def test_a_rank_is_not_said_to_be_stopped_if_another_ended(ranks, number, monkeypatch, capfd):
    """Torchrun sends SIGTERM to all when it loses one; who is alone was sent it by somebody."""
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    signals = Signals(ends_process=True)
    signals.is_waiting = True
    signals._note(number, None)
    told = "SIGTERM (another rank ended, or somebody stops all of them): leaving after this step"
    assert (told in capfd.readouterr().err) == ((ranks, number) == (2, signal.SIGTERM))


def test_a_signal_adds_nothing_to_the_reason_that_was_told():
    """As torchrun sends one to a rank that has just said which other is gone."""
    code = """
        import atexit, os, signal, sys
        from altcore.__main__ import start
        atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))
        sys.argv = ["altcore", "train", "--resume", "nowhere"]
        start()
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "nowhere" in line


def test_threads_do_not_keep_the_command_from_ending():
    """Those that Python would wait for are named."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait, name="acme")
    thread.start()
    try:
        assert still_running(0.1) == ["thread acme"]
    finally:
        done.set()
    assert still_running(60) == []


THREAD = """
        @hookimpl
        def run_start(self):
            import threading
            threading.Thread(target=time.sleep, args=(600,), name="acme").start()
"""


@pytest.mark.slow
def test_a_thread_of_a_plugin_is_left_behind(tmp_path, corpus):
    """The run is finished, and the exit code says so."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(
        "import altcore.cli.threads\naltcore.cli.threads.PATIENCE = 0.5\n"
    )
    arguments = ("--steps", "2", *install(tmp_path / "site", THREAD, "spins", "reporter"))
    with started(tmp_path, corpus, *arguments, path=[tmp_path / "site"]) as process:
        out, err = process.communicate(timeout=90)
    assert process.returncode == 0
    assert "finished" in out
    assert err.splitlines()[-1].startswith("altcore: left thread acme running, 0.5 s after")


@pytest.mark.parametrize("kind", ["ThreadPoolExecutor", "ProcessPoolExecutor"])
def test_a_pool_that_waits_for_work_is_not_waited_for(kind):
    """Python ends it by itself; torch.compile keeps one, too."""
    code = f"""
        from concurrent.futures import {kind}
        from altcore.cli.threads import leave_threads

        pool = {kind}(2)
        assert pool.submit(abs, -2).result() == 2
        leave_threads(0)
        print("ended")
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    # Less than it has patience for.
    done = subprocess.run(command, capture_output=True, text=True, timeout=45, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ended\n", "")


def test_a_second_interrupt_does_not_wait_whatever_came_before():
    """SIGTERM and SIGINT do, and only the first decides the exit code."""
    with handling_signals() as signals:
        signals.is_waiting = True
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
        with pytest.raises(LeaveNow, match="SIGINT"):
            signal.raise_signal(signal.SIGINT)
        assert signals.asked == signal.SIGTERM


def test_another_thread_handles_no_signals():
    """Python delivers none there; the main thread may handle them meanwhile."""
    before, inside = [signal.getsignal(n) for n in WATCHED], []

    def handle():
        with handling_signals() as signals:
            inside.append((signals.asked, [signal.getsignal(n) for n in WATCHED]))

    thread = threading.Thread(target=handle)
    thread.start()
    thread.join()
    assert inside == [(0, before)]


def test_processes_do_not_keep_the_command_from_ending():
    """Python would wait for those of multiprocessing, too."""
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,), name="acme")
    child.start()
    try:
        assert still_running(0.1) == ["process acme"]
    finally:
        child.kill()
    assert still_running(60) == []
