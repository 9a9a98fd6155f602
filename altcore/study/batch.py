"""Jobs of a study that need nothing of one another: run side by side, and told as they end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from attrs import define, evolve, field

from altcore.config import TrainConfig
from altcore.errors import AltcoreError
from altcore.hooks import Executor
from altcore.sweep import Job, Ledger, State, SweepFile, placing_of, worker_of

PAUSE = 1.0
"""Seconds between two looks at runs in other processes."""


@define
class Batch:
    """Jobs of a ledger that have no result yet."""

    ledger: Ledger
    left: set[str]
    """The names of the jobs."""
    ended: Callable[[str], None]
    """Called once for each job that got a result. An `AltcoreError` that it raises ends the
    batch."""
    running: Callable[[Sequence[str]], None]
    """Takes the names of the jobs that are being run."""
    passed_in: Callable[[TrainConfig], Mapping[str, Any]]
    """What a run in this process gets from Python."""
    error: AltcoreError | None = field(init=False, default=None)
    """What ends the batch: the first that went wrong."""
    _lock: threading.Lock = field(init=False, factory=threading.Lock)
    _last: str = field(init=False, default="")
    """The job that the worker in this process was about to begin."""

    def run(
        self, sweep: SweepFile, executor: Executor, told: str, tell: Callable[[str], None]
    ) -> None:
        """Run the jobs by an executor, which ``told`` names, until each has a result.

        ``tell`` takes what is waited for: a disk that is full, or a process that has a job.

        Raises:
            AltcoreError: if a run fails. No worker begins another one then; those that are being
                run end first.
        """
        worker = worker_of(sweep, self.ledger, told.partition(":")[0], tell)
        worker.note = lambda _: None  # `ended` and `running` tell that
        worker.may_begin, worker.passed_in = self._may_begin, self.passed_in
        placing = placing_of(sweep, self.ledger, told, tell)
        with self._watched():
            executor.run(evolve(placing, work=worker.work, left=self._count))
        if self.error is not None:
            raise self.error
        if self.left:
            name, said = min(self.left), self.ledger.folder / "workers"
            why = self.ledger.standing(name).problem or "its worker left it"
            more = f", and what workers said is in {said}" if said.is_dir() else ""
            count = f"{len(self.left)} run{'s were' if len(self.left) > 1 else ' was'} not made"
            raise AltcoreError(f"{count}: {name}: {why}{more}; the same command goes on")

    def _count(self) -> int:
        """Count the runs that are waited for: after an error, those that are being made."""
        running = self.look()
        return len(self.left) if self.error is None else running

    def look(self) -> int:
        """Note which jobs ended since the last look; return how many are being run."""
        with self._lock:
            running = [name for name in sorted(self.left) if self._look_at(name) is State.RUNNING]
            if running:
                self.running(running)
            return len(running)

    def _look_at(self, name: str) -> State:
        standing = self.ledger.standing(name)
        if standing.state is State.COMPLETED:
            self.left.remove(name)
            self._end(name)
        elif standing.state is State.FAILED and standing.last and standing.last.exit:
            self._stop(AltcoreError(f"{name}: {standing.last.exit.error}"))
        return standing.state

    def _may_begin(self, job: Job) -> bool:
        # All else is as it was at the last look, or is nothing that this process waits for.
        with self._lock:
            if self._last in self.left:
                self._look_at(self._last)
            self._last = job.name
        return self.error is None

    def _end(self, name: str) -> None:
        try:
            self.ended(name)
        except AltcoreError as error:
            self._stop(error)

    def _stop(self, error: AltcoreError) -> None:
        self.error = self.error or error
        self.ledger.stop()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Look now and then within the context, and once more at its end."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(PAUSE):
                self.look()

        thread = threading.Thread(target=watch, name="altcore study", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self.look()
