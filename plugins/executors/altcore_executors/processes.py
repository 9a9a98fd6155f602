"""What executors share: a worker's process, signals that are passed on, and when to give up."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from attrs import define, field

LOGS = "workers"
"""The folder of the sweep that holds what each worker printed."""
MOST_IDLE = 3
"""Workers that end one after another while nobody begins an attempt."""
WATCHED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def start_worker(
    command: Sequence[str], log: Path, variables: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start a worker, which prints to the end of a file, with further environment variables."""
    log.parent.mkdir(exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


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


@define
class Idle:
    """Tells when to place no more workers: those of late ended, and none made an attempt."""

    attempts: Callable[[], int]
    _made: int = field(init=False)
    _ended: int = field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        self._made = self.attempts()

    def is_over(self, ended: int = 1) -> bool:
        """Count workers that ended; return whether they are too many."""
        made, before = self.attempts(), self._made
        self._made, self._ended = made, 0 if made > before else self._ended + ended
        return self._ended >= MOST_IDLE
