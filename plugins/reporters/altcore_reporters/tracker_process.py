"""The process in which a tracker works, and how the run that it follows starts and ends it.

The two share a pipe each way. The run says once that it is over, and the tracker says that it has
started, where people find the run, that all is sent, or what went wrong.
"""

from __future__ import annotations

import json
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import define, field

from altcore.plugin import EVENTS, read_run
from altcore_reporters.following import Follower, Ledger, mark_of

if TYPE_CHECKING:
    from altcore_reporters.tracking import TrackerReporter

POLL = 0.5
"""Seconds between looks at the record."""
PATIENCE = 2.0
"""Seconds that a process whose run is gone has more than one that is waited for."""
STARTING = 30.0
"""Seconds after the end of a run in which a process has to start, if it has not yet."""
NICENESS = 19
"""While the training goes on, it goes first, also where it uses all cores."""


@define(eq=False)
class TrackerProcess:
    """A tracker's process, as the run sees it."""

    name: str
    """The tracker's."""
    directory: Path
    """The run's."""
    popen: subprocess.Popen[bytes]
    heard: bytes = b""
    is_done: bool = field(init=False, default=False)
    ready_at: float | None = field(init=False, default=None)
    """When it had started and imported what it needs, by the clock of the machine."""
    over_at: float | None = field(init=False, default=None)
    """When it was told that the run is over."""

    going: ClassVar[list[TrackerProcess]] = []
    """The processes of all runs here that were not told so yet."""

    @classmethod
    def start(cls, tracker: TrackerReporter, directory: Path) -> TrackerProcess:
        """Start it; its own output goes to log.txt in the tracker's folder."""
        folder, events = tracker.folder(read_run(directory)), directory / EVENTS
        path = os.pathsep.join(str(Path(p).absolute()) for p in sys.path)
        with (folder / "log.txt").open("ab") as output:
            popen = subprocess.Popen(
                [sys.executable, "-c", f"from {__name__} import main; main()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C is for the run, which says when it is over
            )
        assert popen.stdin is not None
        assert popen.stdout is not None
        os.set_blocking(popen.stdout.fileno(), False)
        live_from = events.stat().st_size if events.exists() else 0
        popen.stdin.write(pickle.dumps((tracker, directory, live_from)).hex().encode() + b"\n")
        popen.stdin.flush()
        started = cls(tracker.name, directory, popen)
        cls.going.append(started)
        return started

    def hear(self) -> str | None:
        """Return the run's address, when it is first known.

        Raises:
            TrackerError: if the tracker failed, or is gone.
        """
        assert self.popen.stdout is not None
        address = None
        is_gone = self.popen.poll() is not None
        self.heard += self.popen.stdout.read() or b""
        *lines, self.heard = self.heard.split(b"\n")
        for line in lines:
            told = json.loads(line)
            self.is_done |= "done" in told
            self.ready_at = told.get("ready", self.ready_at)
            address = told.get("address", address)
            if "error" in told:
                self._fail(told["error"])
        if is_gone and not self.is_done:
            self._fail(f"its process ended by itself (exit code {self.popen.returncode})")
        return address

    def end(self, timeout: float) -> str | None:
        """Wait until everything is sent; returns the address as `hear` does.

        All trackers of the run are told that it is over, so that they send at the same time.

        Raises:
            TrackerError: if that takes longer than ``timeout`` seconds, after the process started.
        """
        try:
            for process in [p for p in self.going if p.directory == self.directory]:
                process._say_over()
            assert self.over_at is not None
            address = None
            while self.popen.poll() is None:
                address = self.hear() or address
                is_ready = self.ready_at is not None
                limit = timeout if is_ready else STARTING
                left = max(self.over_at, self.ready_at or 0) + limit - time.monotonic()
                if left <= 0:
                    slow = f"its process did not start within {limit:g} s"
                    self._fail(_late(limit) if is_ready else slow)
                self._await_word(left)
            return self.hear() or address
        except BaseException:
            self._kill()
            raise

    def _await_word(self, timeout: float) -> None:
        """Wait until there is something to hear, or the process is gone."""
        if self.is_done:
            with suppress(subprocess.TimeoutExpired):
                self.popen.wait(timeout)
            return
        poll = select.poll()
        poll.register(self.popen.stdout, select.POLLIN)
        poll.poll(1e3 * timeout)

    def _say_over(self) -> None:
        assert self.popen.stdin is not None
        self.going.remove(self)
        self.over_at = time.monotonic()
        with suppress(BrokenPipeError):
            self.popen.stdin.write(b"\n")
            self.popen.stdin.close()
        with suppress(OSError):  # only some users may
            os.setpriority(os.PRIO_PGRP, self.popen.pid, os.getpriority(os.PRIO_PROCESS, 0))

    def _fail(self, problem: str) -> None:
        self._kill()
        hint = f"altcore runs upload {self.directory.name} --to {self.name}"
        raise TrackerError(f"{problem}; the record has everything, send the rest by: {hint}")

    def _kill(self) -> None:
        if self in self.going:
            self.going.remove(self)
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()


class TrackerError(Exception):
    """A tracker cannot send the run."""


def _late(timeout: float) -> str:
    return f"not everything was sent within {timeout:g} s"


# In the process ----------------------------------------------------------------------------------


def main() -> None:
    """Follow a run until it is over."""
    voice = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the tracker prints goes to its log
    os.nice(NICENESS)
    # Unbuffered: whether there is more to read says whether the run is over.
    sent = os.fdopen(0, "rb", buffering=0, closefd=False).readline()
    tracker, directory, live_from = pickle.loads(bytes.fromhex(sent.decode()))

    def tell(**said: Any) -> None:
        with suppress(BrokenPipeError):
            voice.write(json.dumps(said) + "\n")

    try:
        for module in tracker.imports:
            import_module(module)
        tell(ready=time.monotonic())
        follow(tracker, directory, live_from, tell)
        tell(done=True)
    except BaseException as error:
        with suppress(OSError):  # its log may be on the disk that is full
            traceback.print_exc()
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        if isinstance(error, OSError) and error.filename is None:
            said += f", in {directory / 'reports' / tracker.name}"
        tell(error=said)
    finally:
        with suppress(OSError):
            sys.stderr.flush()
        os._exit(0)  # no exit handler of a client may hold up the run


def follow(tracker: TrackerReporter, directory: Path, live_from: int, tell: Any) -> None:
    """Send what the record holds, and what it gets, until the run is over or gone."""
    over = threading.Event()
    about = (over, tracker.finish_timeout, tell)
    threading.Thread(target=_await_end, args=about, daemon=True).start()
    with Ledger.opened(tracker.folder(read_run(directory))) as ledger:
        follower = Follower.start(tracker, read_run(directory), ledger, live_from)
        if tracker.address:
            tell(address=tracker.address)
        is_over = False
        while not is_over:
            is_over = over.wait(POLL)
            follower.send_new()
        record = read_run(directory)
        tracker.finish(record)
        ledger.mark = mark_of(tracker, record)


def _await_end(over: threading.Event, timeout: float, tell: Any) -> None:
    """Hear that the run is over, and end this process if it takes longer than it may.

    The run does so itself, but it may have been killed, or wait for another tracker.
    """
    os.read(0, 1)
    over.set()
    time.sleep(timeout + PATIENCE)
    tell(error=_late(timeout))
    os.killpg(0, signal.SIGKILL)
