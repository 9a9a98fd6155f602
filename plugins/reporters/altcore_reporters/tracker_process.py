"""The process in which a tracker works, and how the run that it follows starts and ends it.

The two share a pipe each way. The run says once that it is over, and the tracker says where people
find the run, that all is sent, or what went wrong.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import define, field

from altcore.plugin import EVENTS, read_run
from altcore_reporters.following import Follower, Ledger, mark_of

if TYPE_CHECKING:
    from altcore_reporters.tracking import TrackerReporter

POLL = 0.5
"""Seconds between looks at the record."""
PATIENCE = 2.0
"""Seconds that a process whose run is gone has more than one that is waited for."""
NICENESS = 19
"""While the training goes on, it goes first, also where it uses all cores."""


@define(eq=False)
class TrackerProcess:
    """A tracker's process, as the run sees it."""

    name: str
    """The tracker's."""
    run: str
    popen: subprocess.Popen[bytes]
    heard: bytes = b""
    is_done: bool = field(init=False, default=False)

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
        return cls(tracker.name, directory.name, popen)

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
            address = told.get("address", address)
            if "error" in told:
                self._fail(told["error"])
        if is_gone and not self.is_done:
            self._fail(f"its process ended by itself (exit code {self.popen.returncode})")
        return address

    def end(self, timeout: float) -> str | None:
        """Say that the run is over, and wait; returns the address as `hear` does.

        Raises:
            TrackerError: if not everything is sent within ``timeout`` seconds.
        """
        assert self.popen.stdin is not None
        try:
            with suppress(BrokenPipeError):
                self.popen.stdin.write(b"\n")
                self.popen.stdin.close()
            with suppress(OSError):  # only some users may
                os.setpriority(os.PRIO_PGRP, self.popen.pid, os.getpriority(os.PRIO_PROCESS, 0))
            self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self._fail(f"not everything was sent within {timeout:g} s")
        except BaseException:
            self._kill()
            raise
        return self.hear()

    def _fail(self, problem: str) -> None:
        self._kill()
        hint = f"altcore runs upload {self.run} --to {self.name}"
        raise TrackerError(f"{problem}; the record has everything, send the rest by: {hint}")

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()


class TrackerError(Exception):
    """A tracker cannot send the run."""


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
        follow(tracker, directory, live_from, tell)
        tell(done=True)
    except BaseException as error:
        traceback.print_exc()
        tell(error=f"{type(error).__name__}: {error}".splitlines()[0])
    finally:
        sys.stderr.flush()
        os._exit(0)  # no exit handler of a client may hold up the run


def follow(tracker: TrackerReporter, directory: Path, live_from: int, tell: Any) -> None:
    """Send what the record holds, and what it gets, until the run is over or gone."""
    over = threading.Event()
    limit = tracker.finish_timeout + PATIENCE
    threading.Thread(target=_await_end, args=(over, limit), daemon=True).start()
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


def _await_end(over: threading.Event, limit: float) -> None:
    """Hear that the run is over, and end this process if it is there ``limit`` seconds later.

    The run does so itself, but it may have been killed.
    """
    os.read(0, 1)
    over.set()
    time.sleep(limit)
    os.killpg(0, signal.SIGKILL)
