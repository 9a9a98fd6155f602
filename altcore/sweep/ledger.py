"""The ledger of a sweep: a folder that says of every job what was tried and what came of it.

    SWEEP/
      sweep.yaml            what was asked for, as it was last given
      jobs/NAME/job.json    the job; its priority alone may change
      tables/               see `altcore.sweep.tables`
      jobs/NAME/attempts/   see `altcore.sweep.attempt`
      runs/NAME/            the run that was accepted as the job's result
      retired/              what became of jobs that the sweep no longer has
      stop                  while it is there, no worker begins a job
      cache/                see `altcore.sweep.kept`
      runbook.md            which jobs recovered from which errors, for people

Jobs and runs are the facts. There is no lock, and no index but a cache: any number of processes, on
any number of hosts that share the folder, may read it and work on it at any time.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from uuid import uuid4

from attrs import define, evolve, field, frozen

from altcore import durable
from altcore.errors import BadInput
from altcore.runs import SUMMARY, read_json
from altcore.sweep.acceptance import JOB_DIGEST, check_end, digests_of
from altcore.sweep.attempt import (
    ATTEMPTS,
    Attempt,
    Held,
    Watch,
    attempt_at,
    attempts_in,
    lease,
    run_to_go_on_from,
)
from altcore.sweep.carry_on import newest_step
from altcore.sweep.exits import LOST, Exit
from altcore.sweep.job import Job
from altcore.sweep.lazy import Lazy
from altcore.sweep.retired import place_for
from altcore.sweep.retry import DEFAULT_RULES, Decision, Rule, decide, with_cause
from altcore.sweep.runbook import note_recovery
from altcore.sweep.sound import Sound
from altcore.sweep.tables import Table, Tables

JOBS, RUNS, JOB = "jobs", "runs", "job.json"
STOP = "stop"
"""A file in the folder of a sweep: while it is there, no worker begins a job."""
GONE = "it was taken out of the sweep"
SHORT = 12
"""Digits of a job's digest in the name of a folder."""
LOOKS = 20
"""At a silent holder, before it is lost."""
TOLD = "told to be tried again"
"""Why a job is tried again that the rules had given up."""
MISSING = "its run is missing"
"""Why a job waits again that was completed: somebody removed the run."""


class State(Enum):
    """Where a job is."""

    WAITING = "waiting"
    """Nobody has begun it, or it is to be tried again."""
    RUNNING = "running"
    COMPLETED = "completed"
    """Its run was accepted."""
    FAILED = "failed"
    """It ended without a result, and is not tried again."""
    DAMAGED = "damaged"
    """A file of it is not what a sweep writes: nobody takes it until that is mended."""


@frozen
class Standing:
    """Where a job is, and what the ledger knows of it."""

    state: State
    attempts: tuple[Attempt, ...] = ()
    decision: Decision | None = None
    """What follows its last attempt, if that one ended without a result."""
    problem: str = ""
    """What is damaged."""

    @property
    def last(self) -> Attempt | None:
        """Its newest attempt."""
        return self.attempts[-1] if self.attempts else None

    @property
    def lacks_run(self) -> bool:
        """Whether it was completed, and its run is gone."""
        return self.decision is not None and self.decision.why == MISSING


@define
class Ledger:
    """The folder of a sweep."""

    folder: Path
    rules: Mapping[str, Rule] = field(factory=lambda: DEFAULT_RULES)
    sound: Sound = field(init=False, eq=False, repr=False)
    _tables: Tables = field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._tables, self.sound = Tables(self.folder), Sound(self.folder)

    # The plan ----------------------------------------------------------------------------------

    def jobs(self) -> list[Job]:
        """Return all jobs that can be read, by priority and then by name."""
        return self.read_jobs()[0]

    def read_jobs(self) -> tuple[list[Job], dict[str, str]]:
        """Return the jobs as `jobs` does, and what is wrong with the others, by their names."""
        jobs, damaged = [], {}
        for name in self.names():
            try:
                jobs.append(self.job(name))
            except BadInput as error:
                damaged[name] = error.problem
        return sorted(jobs, key=lambda job: job.turn), damaged

    def names(self) -> list[str]:
        """Return the names of all jobs."""
        return sorted(self.folders())

    def folders(self) -> dict[str, int]:
        """Return the number of the folder of each job, by its name: another job has another one."""
        try:
            with os.scandir(self.folder / JOBS) as found:
                return {e.name: e.inode() for e in found if not e.name.startswith(".")}
        except FileNotFoundError:
            return {}

    def job(self, name: str) -> Job:
        """Return a job. Raises `BadInput`, naming the file, if it was changed."""
        path = self._job_file(name)
        durable.check_no_links((path.parent,))
        plain = read_json(path)
        if not plain and not path.exists():
            raise BadInput(f"{path} is missing: there is no job {name!r} in {self.folder}")
        try:
            job = Job.from_plain(plain, self._tables.read)
        except BadInput as error:
            raise BadInput(f"{path}: {error.problem}") from error
        if job.name != name:
            raise BadInput(f"{path} is that of another job, {job.name!r}")
        return job

    def table_of(self, name: str) -> Path:
        """Return the file of a long list that jobs name."""
        return self._tables.path(name)

    def _job_file(self, name: str) -> Path:
        return self.folder / JOBS / name / JOB

    def check_job(self, name: str) -> None:
        """Raise `BadInput`, as `job` does, if a job's file is damaged."""
        self.sound.check(f"{JOBS}/{name}/{JOB}", lambda: self.job(name))

    def add(self, jobs: Iterable[Job]) -> list[str]:
        """Write down jobs that are new; return their names. Those that are there stay."""
        added = []
        for job in jobs:
            target = self.folder / JOBS / job.name
            if not os.path.lexists(target) and self._add(job, target):
                added.append(job.name)
        if added:
            durable.fsync_folder(self.folder / JOBS)
        return added

    def _add(self, job: Job, target: Path) -> bool:
        """Make the folder of a job; return False if another process was quicker."""
        made = target.with_name(f".new-{uuid4().hex}")
        tables: dict[int, Table] = {}
        text = _text_of(job, tables)
        with durable.no_space_named(target):
            try:
                durable.make_folder(made / ATTEMPTS)
                for table in tables.values():
                    self._tables.add(table)
                durable.write_file(made / JOB, text, synced=False)
                durable.rename(made, target)
            except OSError:
                durable.remove(made)
                if not target.exists():
                    raise
                return False
        return True

    def give_priority(self, job: Job) -> None:
        """Write down the priority of a job that is there, for workers that begin from now on."""
        durable.replace_file(self._job_file(job.name), _text_of(job, {}))

    def retire(self, name: str, lost_after: float = 60.0) -> None:
        """Take a job out of the sweep. What was made of it is kept under ``retired``.

        It may be damaged, and its run anything. Its next attempt is leased meanwhile, so that no
        worker begins one. Raises `BadInput` if one is being made; whether its holder is lost is
        looked for ``lost_after`` seconds, if need be.
        """
        told, held = self._told_by(name), None
        self.end_if_lost(name, lost_after)
        if self.standing(name).state is State.WAITING:
            held = lease(self.folder / JOBS / name, self._next_number(name), {})
        if self.standing(name).state is State.RUNNING and held is None:
            raise BadInput(f"{name} was begun a moment ago, and cannot be taken out of the sweep")
        # The run comes first, or that of the job as it was would be the result of the next one.
        parts = [p for p in (self.run_of(name), self.folder / JOBS / name) if os.path.lexists(p)]
        kept = place_for(name, told, (path.parent.name for path in parts), self.folder)
        for path in parts:
            durable.rename(path, kept / path.parent.name)
        if held is not None:
            own = attempt_at(kept / JOBS, held.attempt.number)
            own.end(Exit(status="refused", error="the job was taken out of the sweep"))

    def _told_by(self, name: str) -> str:
        """Return what tells a job from others of its name."""
        try:
            return self.job(name).digest[:SHORT]
        except BadInput:
            return State.DAMAGED.value

    def end_if_lost(self, name: str, lost_after: float) -> None:
        """End the attempt that goes on at a job. Raises `BadInput` unless its holder is lost."""
        standing = self.standing(name)
        last = standing.last
        if standing.state is not State.RUNNING or last is None:
            return
        watch, before = Watch(lost_after), last.heartbeat
        while not watch.is_lost(last):
            process = last.lease.process
            if process.is_gone() is False or last.heartbeat != before:
                raise BadInput(
                    f"{name} is being run by process {process.pid} on {process.host}, and "
                    "cannot be taken out of the sweep: end that, or wait"
                )
            time.sleep(lost_after / LOOKS)
        self._end_lost(self.job(name), last, watch)

    def _next_number(self, name: str) -> int:
        last = self.standing(name).last
        return last.number + 1 if last else 1

    def stop(self) -> None:
        """Let no worker begin a job, wherever it is."""
        durable.write_once(self.folder / STOP, b"")

    def is_stopped(self) -> bool:
        """Return whether no worker begins a job."""
        return os.path.lexists(self.folder / STOP)

    def go_on(self) -> None:
        """Let workers begin jobs again."""
        durable.remove(self.folder / STOP)

    # Where a job is ----------------------------------------------------------------------------

    def run_of(self, name: str) -> Path:
        """Return where a job's accepted run is, or will be."""
        return self.folder / RUNS / name

    def standing(self, name: str) -> Standing:
        """Return where a job is. A lost holder is not noticed: that takes a `Watch`."""
        try:
            return self._standing(name)
        except BadInput as error:
            return Standing(State.DAMAGED, problem=error.problem)

    def _standing(self, name: str) -> Standing:
        attempts = tuple(attempts_in(self.folder / JOBS / name))
        self.check_job(name)
        run = self.run_of(name)
        durable.check_no_links((run,))
        if run.is_dir():
            self.sound.check(f"{RUNS}/{name}/{SUMMARY}", lambda: check_end(run))
            return Standing(State.COMPLETED, attempts)
        if not attempts:
            return Standing(State.WAITING)
        last = attempts[-1]
        ended = last.exit
        if ended is None:
            _ = last.lease  # which somebody must be able to read
            return Standing(State.RUNNING, attempts)
        changed, told = last.lease.changed, last.again
        if ended.is_complete:
            if run.is_dir():  # by now
                return Standing(State.COMPLETED, attempts)
            decision = Decision(goes_on=True, why=MISSING, changed=changed)
            return Standing(State.WAITING, attempts, decision)
        if told is not None:
            decision = Decision(goes_on=True, why=TOLD, changed={**changed, **told})
            return Standing(State.WAITING, attempts, decision)
        exits = [a.exit or Exit(status=LOST) for a in _since_told(attempts[:-1])]
        config = Lazy(lambda: self.job(name).config)  # which most rules do not ask for
        decision = decide([*exits, ended], config, changed, self.rules)
        return Standing(State.WAITING if decision.goes_on else State.FAILED, attempts, decision)

    # Taking and ending -------------------------------------------------------------------------

    def take(self, job: Job, watch: Watch, executor: str = "") -> Held | None:
        """Lease the next attempt at a job; None if there is none to make, or it is another's.

        An attempt whose holder is lost is ended here. Its run goes on in the new attempt, from a
        copy: whoever still writes to the old one changes nothing that counts.
        """
        standing = self.standing(job.name)
        last = standing.last
        if standing.state is State.RUNNING and last is not None and watch.is_lost(last):
            self._end_lost(job, last, watch)
            standing = self.standing(job.name)
        if standing.state is State.DAMAGED and not os.path.lexists(self._job_file(job.name)):
            raise BadInput(GONE)
        if standing.state is not State.WAITING:
            return None
        self._check_asked(job)
        changed = standing.decision.changed if standing.decision else {}
        number = last.number + 1 if last else 1
        before = run_to_go_on_from(standing.attempts, job.name, changed)
        held = lease(self.folder / JOBS / job.name, number, changed, executor, before)
        if held is not None:
            self._check_asked(job, held)
        elif not (self.folder / JOBS / job.name).exists():
            raise BadInput(GONE)
        return held

    def _check_asked(self, job: Job, held: Held | None = None) -> None:
        """Raise `BadInput`, and end what is ``held``, if the sweep has another job of this name."""
        if not self._is_asked(job):
            if held is not None:
                held.end(Exit(status="refused", error=GONE))
            raise BadInput(GONE)

    def _is_asked(self, job: Job) -> bool:
        return read_json(self._job_file(job.name)).get("digest") == job.digest

    def _end_lost(self, job: Job, last: Attempt, watch: Watch) -> None:
        """End an attempt whose holder is lost; what it finished but did not publish is accepted."""
        last.take_over()
        if self.run_of(job.name).is_dir():
            return
        told = last.lease.process
        ended = Exit(
            status=LOST,
            error=f"process {told.pid} on {told.host} is gone, or silent",
            checkpoint=newest_step(last.run_directory(job.name)),
            seconds=watch.seconds_of(last),
        )
        last.end(ended)

    def end(self, job: Job, held: Held, ended: Exit) -> Exit:
        """End an attempt that this process holds, and publish its run; return how it ended.

        The rename that publishes a run is what makes it the result. If the process is killed just
        before, the next attempt finds the run finished and publishes it; if just after, the record
        of the exit is missing, and the run says the same.
        """
        if ended.is_complete and not held.is_taken_over():
            note_recovery(self.folder, job.name, attempts_in(self.folder / JOBS / job.name))
        with durable.no_space_named(self.folder / RUNS):
            (self.folder / RUNS).mkdir(exist_ok=True)
        if ended.is_complete:
            digests = {JOB_DIGEST: job.digest, **digests_of(held.attempt.work / job.name)}
            ended = evolve(ended, accepted=digests)
        is_lost = not ended.is_complete and held.is_taken_over()
        if ended.is_complete and not self._is_asked(job):
            ended = Exit(status="refused", error=GONE)
        elif is_lost or (ended.is_complete and not held.publish(job.name, self.run_of(job.name))):
            ended = evolve(held.not_published(self.run_of(job.name)), seconds=ended.seconds)
        ended = with_cause(ended, self.rules)
        held.end(ended)
        self._put_aside(job)
        return ended

    def _put_aside(self, job: Job) -> None:
        """Move what a run saved of itself when somebody removed its job, which is none any more."""
        folder = self.folder / JOBS / job.name
        if folder.is_dir() and not os.path.lexists(self._job_file(job.name)):
            kept = place_for(job.name, job.digest[:SHORT], [JOBS], self.folder)
            durable.rename(folder, kept / JOBS)


def _text_of(job: Job, tables: dict[int, Table]) -> bytes:
    return json.dumps(job.to_plain(tables), indent=1, allow_nan=False).encode()


def _since_told(attempts: Sequence[Attempt]) -> Sequence[Attempt]:
    """Return the attempts after the last one that people told to be followed."""
    told = [i for i, attempt in enumerate(attempts) if attempt.again is not None]
    return attempts[told[-1] + 1 :] if told else attempts
