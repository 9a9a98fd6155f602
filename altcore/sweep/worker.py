"""The loop of a worker: take a job, run it, end it, until nothing is left to take.

Every executor runs this loop, in as many processes as it places. What is to be done is in the
ledger, and nowhere else.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

from attrs import define, evolve, field

from altcore.builtin_types import duration
from altcore.signals import forget_signal, handling_signals
from altcore.sweep.attempt import Held, Watch
from altcore.sweep.deadline import GRACE, deadline
from altcore.sweep.exits import Exit
from altcore.sweep.job import Job
from altcore.sweep.ledger import Ledger, State
from altcore.sweep.run_job import Leave, run_job

HANGS = 75
"""The exit code of a worker whose attempt hung."""
PAUSE = 1.0
"""Seconds between two looks at jobs that others hold."""


@define
class Worker:
    """Pulls the jobs of a sweep, one after another."""

    ledger: Ledger
    lost_after: float
    collapse_fails: bool = False
    executor: str = "local"
    tell: Callable[[str], None] = print
    timeout: float | None = None
    """Seconds that an attempt may take."""
    grace: float = GRACE
    """Seconds in which a run that is late may save its state."""
    is_own_process: bool = False
    """Whether the process is the worker's alone, and may be ended with an attempt that hangs."""
    may_begin: Callable[[Job], bool] = lambda _: True
    """Asked before a job is taken: whether its time is enough, for one."""
    waits: bool = True
    """Whether to wait for jobs that others hold, which come back if these are lost."""
    _watch: Watch = field(init=False)
    _parent: int = field(init=False, factory=os.getppid)
    _ended: dict[str, State] = field(init=False, factory=dict)
    """Jobs that nobody takes any more: they need no second look."""

    def __attrs_post_init__(self) -> None:
        self._watch = Watch(self.lost_after)

    def work(self) -> int:
        """Run jobs until none is left; return how many attempts were made.

        Raises whatever a signal raised in a run, after that attempt was ended.
        """
        made = 0
        for job, held in self._taken():
            made += 1
            self._attempt(job, held)
        return made

    def _may_begin(self, job: Job) -> bool:
        # A worker whose executor is gone would be one too many beside those of the next one.
        return os.getppid() == self._parent and self.may_begin(job)

    def _taken(self) -> Iterator[tuple[Job, Held]]:
        """Yield jobs that this worker holds, as long as any may be left."""
        jobs = self.ledger.jobs()
        while True:
            taken = False
            for job in jobs:
                if job.name in self._ended or not self._may_begin(job):
                    continue
                held = self.ledger.take(job, self._watch, self.executor)
                if held is not None:
                    taken = True
                    yield job, held
                    # One of a higher priority may wait again.
                    break
                state = self.ledger.standing(job.name).state
                if state in (State.COMPLETED, State.FAILED):
                    self._ended[job.name] = state
            if taken:
                continue
            left = [job for job in jobs if job.name not in self._ended and self._may_begin(job)]
            if not left or not self.waits:
                return
            time.sleep(PAUSE)

    def _attempt(self, job: Job, held: Held) -> None:
        self.tell(f"{job.name}: attempt {held.attempt.number}")

        def hangs() -> None:
            self.tell(f"{job.name}: {self._late.error}, and does not leave")
            if self.is_own_process:
                held.attempt.end(self._late)
                os._exit(HANGS)

        with (
            handling_signals(),
            held.beating(self.lost_after),
            deadline(self.timeout, hangs, self.grace) as late,
        ):
            try:
                ended = run_job(job, held, collapse_fails=self.collapse_fails)
            except Leave as left:
                if not late.is_over:
                    self.ledger.end(job, held, left.ended)
                    raise left.cause from None
                ended = evolve(left.ended, status="timeout", error=self._late.error)
        if late.is_over:
            forget_signal()
        ended = self.ledger.end(job, held, ended)
        told = ended.verdict or ended.error
        self.tell(f"{job.name}: {ended.status}{f': {told}' if told else ''}")

    @property
    def _late(self) -> Exit:
        error = f"it took longer than {duration(self.timeout or 0)}"
        return Exit(status="timeout", error=error, seconds=self.timeout)
