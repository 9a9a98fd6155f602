"""The loop of a worker: take a job, run it, end it, until nothing is left to take.

Every executor runs this loop, in as many processes as it places. What is to be done is in the
ledger, and nowhere else.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

from attrs import define, field

from altcore.sweep.attempt import Held, Watch
from altcore.sweep.exits import Exit
from altcore.sweep.job import Job
from altcore.sweep.ledger import Ledger, State
from altcore.sweep.run_job import Leave, run_job

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

    def _attempt(self, job: Job, held: Held) -> Exit:
        number = held.attempt.number
        self.tell(f"{job.name}: attempt {number}")
        with held.beating(self.lost_after):
            try:
                ended = run_job(job, held, collapse_fails=self.collapse_fails)
            except Leave as left:
                self.ledger.end(job, held, left.ended)
                raise left.cause from None
        ended = self.ledger.end(job, held, ended)
        told = ended.verdict or ended.error
        self.tell(f"{job.name}: {ended.status}{f': {told}' if told else ''}")
        return ended
