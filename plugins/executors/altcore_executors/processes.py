"""What executors share: a worker's process, signals that are passed on, and when to give up."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from attrs import define, field

from altcore.plugin import EXECUTOR_PID, Interrupted

LOGS = "workers"
"""The folder of the sweep that holds what each worker printed."""
MOST_IDLE = 3
"""Workers that end one after another while nobody begins an attempt."""
WATCHED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def start_worker(
    command: Sequence[str], log: Path, variables: Mapping[str, str], *, stays: bool = False
) -> subprocess.Popen[bytes]:
    """Start a worker, which prints to the end of a file, with further environment variables.

    One that ``stays`` has a pipe as its standard input, which ends at the latest with this process.
    """
    log.parent.mkdir(exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    with os.fdopen(os.open(log, flags, 0o666), "ab") as output:
        return subprocess.Popen(
            (*command, "--stay") if stays else command,
            env={**os.environ, **variables, EXECUTOR_PID: str(os.getpid())},
            stdin=subprocess.PIPE if stays else subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def exit_code(worker: subprocess.Popen[bytes]) -> int | None:
    """Return how a worker ended, None while it runs. What it started ends with it."""
    if worker.returncode is None:
        # Until it is waited for, no other process has its id, nor that of its group.
        seen = os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if seen is None:
            return None
        kill(worker)
    return worker.poll()


def kill(worker: subprocess.Popen[bytes]) -> None:
    """End a worker that was not waited for, with the processes that it started."""
    with suppress(ProcessLookupError, PermissionError):  # of one that has other rights
        os.killpg(worker.pid, signal.SIGKILL)


def told_exit(code: int) -> str:
    """Return in words how a process ended."""
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


@contextmanager
def on_signal(act: Callable[[int], None]) -> Iterator[None]:
    """Call a function with the number of each signal that asks this process to leave."""
    before = {number: signal.signal(number, lambda n, _: act(n)) for number in WATCHED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def left_by(number: int) -> Interrupted:
    """Return the error with which a process leaves after its workers."""
    name = signal.Signals(number).name
    return Interrupted(f"{name}: the workers left, and their runs can go on", number)


@define
class Idle:
    """Tells when to place no more workers: those of late ended, and none made an attempt."""

    attempts: Callable[[], int]
    _made: int = field(init=False)
    _ends: int = field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        self._made = self.attempts()

    def ends(self, ended: int = 1) -> int:
        """Count workers that ended; return how many did since an attempt was made."""
        made, before = self.attempts(), self._made
        self._made, self._ends = made, 0 if made > before else self._ends + ended
        return self._ends

    def may_start(self, code: object) -> bool:
        """Return whether another worker may follow one that ended, with a code or word of its end.

        One that ended well has nothing to do, unless it was ended by its job.
        """
        ends = self.ends()
        return ends < MOST_IDLE if code else not ends
