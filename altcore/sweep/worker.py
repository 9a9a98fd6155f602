"""The loop of a worker: take a job, run it, end it, until nothing is left to take.

Every executor runs this loop, in as many processes as it places. What is to be done is in the
ledger, and nowhere else.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any, NoReturn

from attrs import define, evolve, field

from altcore.builtin_types import duration
from altcore.config import TrainConfig
from altcore.errors import BadInput, NoSpace, text_of
from altcore.signals import forget_signal, handling_signals
from altcore.sweep.attempt import Held, Watch
from altcore.sweep.carry_on import newest_step
from altcore.sweep.deadline import GRACE, deadline
from altcore.sweep.exits import SIGNAL, Exit
from altcore.sweep.job import Job
from altcore.sweep.ledger import Ledger, State
from altcore.sweep.run_job import DISK, Leave, run_job
from altcore.sweep.usage import Usage

HANGS = 75
"""The exit code of a worker whose attempt hung."""
PAUSE = 1.0
"""Seconds between two looks at jobs that others hold, and the first wait for a full disk."""
STAY = 0.2
"""Seconds between two looks for jobs that may be added."""
LONGEST_PAUSE = 60.0
PATIENCE = 600.0
"""Seconds that a worker waits for a disk that is full or read-only, before it leaves."""


@define
class Worker:
    """Pulls the jobs of a sweep, one after another."""

    ledger: Ledger
    lost_after: float
    collapse_fails: bool = False
    fail_fast: bool = False
    """Whether a job that fails for good stops all workers of the sweep after their jobs."""
    executor: str = "local"
    tell: Callable[[str], None] = print
    note: Callable[[str], None] | None = None
    """Takes the lines of attempts that begin and end, in place of ``tell``."""
    timeout: float | None = None
    """Seconds that an attempt may take."""
    grace: float = GRACE
    """Seconds in which a run that is late may save its state."""
    is_own_process: bool = False
    """Whether the process is the worker's alone, and may be ended with an attempt that hangs."""
    passed_in: Callable[[TrainConfig], Mapping[str, Any]] = lambda _: {}
    """What a run gets from Python: a model, data or a loss in the place of its workload's own."""
    may_begin: Callable[[Job], bool] = lambda _: True
    """Asked before a job is taken: whether its time is enough, for one."""
    stays: Callable[[], bool] = lambda: False
    """Asked when no job is left: whether to wait for jobs that may be added."""
    waits: bool = True
    """Whether to wait for jobs that others hold, which come back if these are lost."""
    executor_pid: int | None = None
    """The process that started this one, and watches it: once it is gone, no job is begun."""
    _watch: Watch = field(init=False)
    _ended: dict[str, State] = field(init=False, factory=dict)
    """Jobs that nobody takes any more: they need no second look."""
    _waited: float = field(init=False, default=0.0)
    """Seconds of waiting since the disk was as it should be."""

    def __attrs_post_init__(self) -> None:
        self._watch = Watch(self.lost_after)

    def work(self) -> int:
        """Run jobs until none is left; return how many attempts were made.

        Raises:
            NoSpace: if the disk stays full or read-only.
            BaseException: whatever a signal raised in a run, after that attempt was ended.
        """
        made = 0
        for job, held in self._taken():
            made += 1
            try:
                self._attempt(job, held)
                self._waited = 0.0
            except BadInput as error:
                self._pass_by(job, error.problem)
            except DISK as error:
                self._wait_for_disk(error)
        return made

    def _pass_by(self, job: Job, problem: str) -> None:
        self.tell(f"{job.name}: {problem}; this worker leaves the job alone")
        self._ended[job.name] = State.DAMAGED

    def _wait_for_disk(self, error: Exception) -> None:
        if self._waited >= PATIENCE:
            if isinstance(error, NoSpace):
                raise error
            raise NoSpace(f"{text_of(error)}, for {duration(self._waited)}") from error
        pause = min(max(PAUSE, self._waited), LONGEST_PAUSE)
        with suppress(OSError):  # the worker may print to that disk
            self.tell(f"{error}: waiting {pause:g} s")
        self._waited += pause
        time.sleep(pause)

    def _may_begin(self, job: Job) -> bool:
        # A worker whose executor is gone would be one too many beside those of the next one.
        is_left_alone = self.executor_pid not in (None, os.getppid())
        return not is_left_alone and not self.ledger.is_stopped() and self.may_begin(job)

    def _taken(self) -> Iterator[tuple[Job, Held]]:
        """Yield jobs that this worker holds, as long as any may be left."""
        known: dict[str, int] | None = None
        while True:
            if known is None or (self.stays() and known != self.ledger.folders()):
                known = self.ledger.folders()
                jobs, damaged = self.ledger.read_jobs()
                self._ended.clear()
                for problem in damaged.values():
                    self.tell(problem)
            # From the first one each time: one of a higher priority may wait again.
            if taken := self._take_first(jobs):
                yield taken
                continue
            is_left = any(map(self._is_left, jobs))
            if not (is_left and self.waits) and not self.stays():
                return
            time.sleep(PAUSE if is_left else STAY)

    def _take_first(self, jobs: Sequence[Job]) -> tuple[Job, Held] | None:
        """Take the first job that nobody holds, those that come later last."""
        later: list[Job] = []
        for job in chain(jobs, later):
            if not self._is_left(job):
                continue
            if job not in later and self._comes_later(job):
                later.append(job)
            elif held := self._take(job):
                return job, held
        return None

    def _take(self, job: Job) -> Held | None:
        """Take a job unless somebody holds it; note one that has ended or is damaged."""
        try:
            if held := self.ledger.take(job, self._watch, self.executor):
                return held
        except BadInput as error:
            self._pass_by(job, error.problem)
            return None
        except DISK as error:
            self._wait_for_disk(error)
        standing = self.ledger.standing(job.name)
        if standing.state is State.DAMAGED:
            self._pass_by(job, standing.problem)
        elif standing.state in (State.COMPLETED, State.FAILED):
            self._ended[job.name] = standing.state
        return None

    def _is_left(self, job: Job) -> bool:
        return job.name not in self._ended and self._may_begin(job)

    def _comes_later(self, job: Job) -> bool:
        decision = self.ledger.standing(job.name).decision
        return decision is not None and decision.comes_later

    def _attempt(self, job: Job, held: Held) -> None:
        note, usage, began = self.note or self.tell, Usage(), time.perf_counter()
        note(f"{job.name}: attempt {held.attempt.number}")

        def hangs() -> None:
            self.tell(f"{job.name}: {self._late(began).error}, and does not leave")
            if self.is_own_process:
                held.end(self._late(began))
                os._exit(HANGS)

        with (
            handling_signals() as signals,
            held.beating(self.lost_after, usage.sample),
            deadline(self.timeout, hangs, self.grace) as late,
        ):

            def leaves_at_once() -> None:
                step = newest_step(held.attempt.run_directory(job.name))
                error = f"{signals.name}: left at once"
                left = Exit(status="interrupted", cause=SIGNAL, error=error, checkpoint=step)
                held.end(self._late(began) if late.is_over else left)

            signals.before_end = leaves_at_once
            try:
                ended = run_job(
                    job,
                    held,
                    collapse_fails=self.collapse_fails,
                    rules=self.ledger.rules,
                    usage=usage,
                    passed_in=self.passed_in,
                )
            except Leave as left:
                if not late.is_over or isinstance(left.cause, DISK):
                    self._leave(job, held, left)
                ended = evolve(
                    left.ended, status="timeout", cause="", error=self._late(began).error
                )
            finally:
                signals.before_end = lambda: None
        if late.is_over:
            forget_signal()
        ended = self.ledger.end(job, held, ended)
        if self.fail_fast and self.ledger.standing(job.name).state is State.FAILED:
            self.ledger.stop()
        told = ended.verdict or ended.error
        note(f"{job.name}: {ended.status}{f': {told}' if told else ''}")
        if ended.changes:
            changed = f"{job.name} replaced {', '.join(ended.changes)}"
            self.tell(f"{changed}: later jobs of this worker may have other numbers")

    def _leave(self, job: Job, held: Held, left: Leave) -> NoReturn:
        with suppress(*DISK):  # then its process, which is gone, says that it was lost
            self.ledger.end(job, held, left.ended)
        raise left.cause from None

    def _late(self, began: float) -> Exit:
        seconds = round(time.perf_counter() - began, 3)
        error = f"it took longer than {duration(self.timeout or 0)}"
        return Exit(status="timeout", error=error, seconds=seconds)
