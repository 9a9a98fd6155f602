"""A sweep under the executor ``local`` whose supervisor and workers are killed all the time.

The processes are forks of this one, which has imported torch, and otherwise those of the command.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field
from helpers_sweep_faults import started

from altcore.sweep import Ledger, SweepFile, placing_of, worker, worker_of
from altcore_executors import pool


@define
class ForkedWorker:
    """A worker of a pool, with the part of Popen that pools use."""

    pid: int
    _code: int | None = None

    def poll(self) -> int | None:
        """Return its exit code, None while it runs."""
        if self._code is None and (told := os.waitpid(self.pid, os.WNOHANG))[0]:
            self._code = os.waitstatus_to_exitcode(told[1])
        return self._code

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


@define
class KilledSweep:
    """Runs a sweep with two workers, through so many kills."""

    ledger: Ledger
    draw: random.Random
    victims: dict[str, int] = field(factory=lambda: {"supervisor": 0, "worker": 0})
    """How many of each kind were killed."""

    def run(self, kills: int) -> None:
        """Kill a process whenever another share of the jobs is done, until all are."""
        jobs, made = len(self.ledger.names()), 0
        supervisor = started(self._supervise)
        while True:
            if os.waitpid(supervisor, os.WNOHANG)[0]:
                if self._done() == jobs:
                    break
                supervisor = started(self._supervise)
            # All within the first half of the jobs: what is quick must not end before the last one.
            if made < kills and self._done() >= made * jobs // (2 * kills):
                time.sleep(self.draw.random() / 5)
                # The supervisor one time in four, or else a worker of this or an earlier one.
                made += self._kill(supervisor) if made % 4 == 1 else self._kill_worker()
            time.sleep(0.01)
        assert made == kills

    def _done(self) -> int:
        return len(list((self.ledger.folder / "runs").glob("*")))

    def _kill_worker(self) -> bool:
        workers = [int(path.name) for path in self._pids.glob("*")]
        self.draw.shuffle(workers)
        return any(self._kill(pid, "worker") for pid in workers)

    def _kill(self, pid: int, kind: str = "supervisor") -> bool:
        """Kill a process; return False if it has ended."""
        state = ""
        with suppress(OSError):
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state in ("", "Z", "X"):
            (self._pids / str(pid)).unlink(missing_ok=True)
            return False
        os.kill(pid, signal.SIGKILL)
        self.victims[kind] += 1
        return True

    @property
    def _pids(self) -> Any:
        made = self.ledger.folder.parent / "pids"
        made.mkdir(exist_ok=True)
        return made

    def _supervise(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pool, "PAUSE", 0.05)
            patch.setattr(worker, "PAUSE", 0.05)
            patch.setattr(pool.Pool, "_start", self._start_in(SweepFile()))
            pool.Pool(placing_of(SweepFile(), self.ledger, "local", bool), 2).run()

    def _start_in(self, sweep: SweepFile) -> Callable[[Any, int], None]:
        def start(own: pool.Pool, slot: int) -> None:
            own._workers[slot] = ForkedWorker(started(lambda: self._work(sweep)))  # type: ignore[assignment]

        return start

    def _work(self, sweep: SweepFile) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_DFL)  # the supervisor's own
        (self._pids / str(os.getpid())).touch()
        worker_of(sweep, self.ledger, "local", bool, is_own_process=True).work()
