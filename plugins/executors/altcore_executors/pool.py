"""Worker processes on one machine: started, watched, and started again while jobs are left."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from attrs import define, field

from altcore.plugin import Placing

PAUSE = 0.5
"""Seconds between two looks at the workers."""
LOGS = "workers"
"""The folder of the sweep that holds what each worker printed."""
MOST_DEATHS = 3
"""Workers of one slot that die one after another without having made an attempt."""


def devices() -> list[str]:
    """Return the ids of the GPUs that this process may use, without importing torch."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is not None:
        return [part.strip() for part in told.split(",") if part.strip() not in ("", "-1")]
    return [str(i) for i, _ in enumerate(sorted(Path("/proc/driver/nvidia/gpus").glob("*")))]


@define
class Pool:
    """So many workers of one sweep."""

    placing: Placing
    count: int
    threads: int = 1
    """Of each worker."""
    _workers: dict[int, subprocess.Popen[bytes]] = field(init=False, factory=dict)
    """By slot."""
    _asked: int = field(init=False, default=0)
    """The signal that asked this process to leave."""

    def run(self) -> None:
        """Keep a worker in each slot until no job is left.

        A signal is passed on: the workers save their runs, and this process leaves after them.
        """
        deaths = dict.fromkeys(range(self.count), 0)
        with self._passing_signals_on():
            for slot in range(self.count):
                self._start(slot)
            while self._workers:
                time.sleep(PAUSE)
                for slot, worker in list(self._workers.items()):
                    code = worker.poll()
                    if code is None:
                        continue
                    del self._workers[slot]
                    if code and not self._asked:
                        self._tell_death(slot, code)
                        deaths[slot] += 1
                        if deaths[slot] < MOST_DEATHS and self.placing.left():
                            self._start(slot)
        if self._asked:
            raise SystemExit(128 + self._asked)

    def _start(self, slot: int) -> None:
        gpus = devices()
        own = {"OMP_NUM_THREADS": str(self.threads)}
        if gpus:
            own["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
        log = self.log_of(slot)
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as output:
            self._workers[slot] = subprocess.Popen(
                self.placing.command,
                env={**os.environ, **own},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def log_of(self, slot: int) -> Path:
        """Return the file to which the worker of a slot prints."""
        return self.placing.folder / LOGS / f"{os.uname().nodename}-{slot}.log"

    def _tell_death(self, slot: int, code: int) -> None:
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self.placing.tell(f"the worker of slot {slot} ended with {how}: see {self.log_of(slot)}")

    @contextmanager
    def _passing_signals_on(self) -> Iterator[None]:
        def pass_on(number: int, _: FrameType | None) -> None:
            self._asked = number
            for worker in self._workers.values():
                worker.send_signal(number)

        watched = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
        before = {number: signal.signal(number, pass_on) for number in watched}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            for worker in self._workers.values():
                worker.kill()
