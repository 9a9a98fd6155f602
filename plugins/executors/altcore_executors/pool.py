"""Worker processes on one machine: started, watched, and started again while jobs are left."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from attrs import define, field

from altcore.plugin import Placing
from altcore_executors.processes import (
    LOGS,
    Idle,
    exit_code,
    kill,
    left_by,
    on_signal,
    start_worker,
    told_exit,
)

PAUSE = 0.5
"""Seconds between two looks at the workers."""


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
    name: str = field(factory=lambda: os.uname().nodename)
    """Of the workers' logs."""
    stays: bool = False
    """Whether workers outlast `run`, until `close`."""
    _workers: dict[int, subprocess.Popen[bytes]] = field(init=False, factory=dict)
    """By slot."""
    _asked: int = field(init=False, default=0)
    """The signal that asked this process to leave."""

    def run(self) -> None:
        """Keep a worker in each slot until no job is left.

        A signal is passed on: the workers save their runs, and this process leaves after them.
        """
        try:
            with on_signal(self._pass_on):
                self._watch()
        except BaseException:
            self.stays = False
            raise
        finally:
            if not self.stays:
                for worker in self._workers.values():
                    kill(worker)
        if self._asked:
            raise left_by(self._asked)

    def _watch(self) -> None:
        idle = Idle(self.placing.attempts)
        for slot in range(self.count):
            if slot not in self._workers:
                self._start(slot)
        while self._workers:
            time.sleep(PAUSE)
            self.placing.look()
            if self.stays and not self._asked and not self.placing.left():
                return
            for slot, worker in list(self._workers.items()):
                code = exit_code(worker)
                if code is None:
                    continue
                del self._workers[slot]
                if self._asked:
                    continue
                if code:
                    self._tell_death(slot, told_exit(code))
                if idle.may_start(code) and self.placing.left():
                    self._start(slot)

    def _start(self, slot: int) -> None:
        if self._asked:
            return
        gpus = devices()
        own = {"OMP_NUM_THREADS": str(self.threads)}
        if gpus:
            own["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
        log = self.log_of(slot)
        worker = start_worker(self.placing.command, log, own, stays=self.stays)
        self._workers[slot] = worker
        if self._asked:  # while it was started
            worker.send_signal(self._asked)

    def close(self) -> None:
        """Let workers that stay end, each after its job."""
        for worker in self._workers.values():
            if worker.stdin is not None:
                worker.stdin.close()
        while any(exit_code(worker) is None for worker in self._workers.values()):
            time.sleep(PAUSE)

    def log_of(self, slot: int) -> Path:
        """Return the file to which the worker of a slot prints."""
        return self.placing.folder / LOGS / f"{self.name}-{slot}.log"

    def _tell_death(self, slot: int, how: str) -> None:
        self.placing.tell(f"the worker of slot {slot} ended with {how}: see {self.log_of(slot)}")

    def _pass_on(self, number: int) -> None:
        self._asked = number
        for worker in self._workers.values():
            worker.send_signal(number)
