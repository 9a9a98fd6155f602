"""Runs of a study: each arm trained once for a seed and a learning rate, and never twice.

The folder of a study is a ledger, as that of a sweep is. A run is a job whose name ends with the
digest of its identity, so another recipe, format, data or code makes another job. Runs that need
nothing of one another are asked for together, and an executor places them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from altcore.builtin_types import duration
from altcore.config import LONGEST_NAME, TrainConfig
from altcore.errors import AltcoreError
from altcore.formats import digest
from altcore.hooks import Executor, Lasting
from altcore.runs import compare, identity_in, summary_of
from altcore.study.accepted import problem_of
from altcore.study.arms import Arm
from altcore.study.batch import Batch
from altcore.study.identity import identity
from altcore.study.outcome import Outcome, outcome_of
from altcore.study.own import Own
from altcore.sweep import (
    DEFAULT_RULES,
    LOST,
    OWN,
    SIGNAL,
    Job,
    Ledger,
    State,
    SweepFile,
    make_executor,
    save_sweep,
)

DIGITS = 12
"""Of a digest in a run's name."""
NOT_REPEATED = {cause: {"limit": 0} for cause in DEFAULT_RULES if cause not in (LOST, SIGNAL)}
"""Rules of a ledger in which no failed run is tried again with other settings: it would be another
experiment."""


@frozen
class Trial:
    """An arm's run that is asked for."""

    arm: Arm
    seed: int
    rate: float = 1.0
    """Multiplies the learning rate."""
    keys: Mapping[str, Any] = field(factory=dict)
    """Further keys of its configuration."""


@define
class Runner:
    """Trains arms below one folder."""

    folder: Path
    base: TrainConfig
    """Of every run: workload, steps, learning rate; float32 unless it says otherwise."""
    tell: Callable[[str], None] = print
    planned: int = 0
    """Runs that are still thought to come, for the time left."""
    facts: Mapping[str, Any] = field(factory=dict)
    """What the workload says of itself, its data included."""
    doing: Callable[[str], None] = lambda _: None
    """Takes what is being done, which nobody needs to read later."""
    executor: str = "local"
    """Where runs are made."""
    own: Own = field(factory=Own)
    """What runs get from Python, in the place of the workload's own."""
    prepare: Callable[[], None] | None = None
    """Called once, before the first run is made, if one has to be made at all."""
    done: int = field(init=False, default=0)
    """Runs that were made in this session."""
    made_again: dict[str, str] = field(init=False, factory=dict)
    """Runs that were there and are no part of the answer, by name, and what was wrong with them."""
    identities: dict[str, Mapping[str, Any]] = field(init=False, factory=dict)
    """What the runs of the answer were, by name, as their manifests say."""
    _ledger: Ledger = field(init=False)
    _sweep: SweepFile = field(init=False)
    _executor: Executor = field(init=False)
    _files: dict[str, str] = field(init=False, factory=dict)
    """Digests of the files that the settings name, as the study met them."""
    _own: dict[str, Any] = field(init=False)
    """What the identity of each run holds of ``own``, as it was before anything was trained."""
    _first: dict[int, Mapping[str, Any]] = field(init=False, factory=dict)
    """The identity of the first run of each seed."""
    _seconds: float = field(init=False, default=0.0)
    """What the finished batches of this session took."""
    _began: float = field(init=False, default=0.0)
    """When the batch began that is being run."""

    def __attrs_post_init__(self) -> None:
        folder = self.folder.absolute()
        self._sweep = SweepFile(name=folder.name, retry=NOT_REPEATED, fail_fast=True, study=True)
        self._ledger = Ledger(folder, self._sweep.rules)
        self._executor = make_executor(self.executor)
        self._own = self.own.identity()

    def lasting(self) -> AbstractContextManager[None]:
        """Let workers last from one batch to the next within the context, if the executor can."""
        return self._executor.lasting() if isinstance(self._executor, Lasting) else nullcontext()

    def outcomes(self, trials: Sequence[Trial]) -> list[Outcome]:
        """Train side by side what was not trained before; return the outcome of each trial.

        Raises:
            AltcoreError: if a run fails, or not all saw the same data. What was made is kept.
        """
        names, missing = self._asked_for(trials)
        if missing and self.prepare is not None:
            prepare, self.prepare = self.prepare, None
            prepare()
            names, missing = self._asked_for(trials)  # of what it made of `base`
        for trial, name in zip(trials, names, strict=True):
            if name not in missing and name not in self.identities:
                self._meet(name, trial.seed)
        self.planned = max(0, self.planned - len(names) + len(missing))
        if missing:
            self._make(missing)
        return [outcome_of(self._ledger.run_of(name), self.base.max_steps) for name in names]

    def digest_of(self, arm: Arm) -> str:
        """Return the digest that identifies an arm, for all seeds."""
        return digest(self._identity(self._config(Trial(arm, 0))))

    def accepted(self, arm: Arm) -> list[tuple[Job, Outcome]]:
        """Return the runs of an arm that are there, with any seed and learning rate."""
        own = _but_seed_and_rate(self._identity(self._config(Trial(arm, 0))))
        steps = self.base.max_steps
        return [
            (job, outcome_of(self._ledger.run_of(job.name), steps))
            for job in self._ledger.jobs()
            if _but_seed_and_rate(job.identity) == own
            and self._ledger.run_of(job.name).is_dir()
            and not problem_of(self._ledger, job.name, steps)
        ]

    # What a run is -----------------------------------------------------------------------------

    def _config(self, trial: Trial) -> TrainConfig:
        return self.base.evolve(
            **{
                "format": None,
                "recipe": trial.arm.recipe(),
                "freeze": trial.arm.freeze,
                "seed": trial.seed,
                "learning_rate": self.base.learning_rate * trial.rate,
                **trial.arm.keys,
                **trial.keys,
            }
        )

    def _identity(self, config: TrainConfig) -> dict[str, Any]:
        found = identity(config, self.facts)
        if self._own:
            found[OWN] = self._own
        self._check_files(found["files"])
        return found

    def _asked_for(self, trials: Sequence[Trial]) -> tuple[list[str], dict[str, tuple[Trial, Job]]]:
        """Return the name of each trial's job, and those of the jobs that have no result yet."""
        known = {_digest_in(name): name for name in self._ledger.names()}
        jobs: dict[str, tuple[Trial, Job]] = {}
        names = []
        for trial in trials:
            job = self._job(trial, known)
            known[_digest_in(job.name)] = job.name
            jobs.setdefault(job.name, (trial, job))
            names.append(job.name)
        return names, {name: jobs[name] for name in jobs if not self._has(name)}

    def _job(self, trial: Trial, known: Mapping[str, str]) -> Job:
        """Return the job of a trial; its name is that of a ``known`` one of the same digest."""
        config = self._config(trial)
        known_by = self._identity(config)
        short = digest(known_by)[:DIGITS]
        end = f"-s{trial.seed}-lr{trial.rate:.3g}-{short}".replace(".", "_")
        plain = config.to_plain()
        return Job(
            name=known.get(short) or trial.arm.key[: LONGEST_NAME - len(end)] + end,
            config={key: plain[key] for key in plain if key not in ("name", "runs_dir")},
            factors={"seed": trial.seed, "learning_rate": config.learning_rate},
            variant=trial.arm.key,
            identity=known_by,
        )

    # Making what is missing --------------------------------------------------------------------

    def _has(self, name: str) -> bool:
        """Return whether a job has a result; one that is not what was accepted is made again."""
        if problem := problem_of(self._ledger, name, self.base.max_steps):
            self._make_again(name, problem)
        return not problem and self._ledger.run_of(name).is_dir()

    def _make_again(self, name: str, problem: str) -> None:
        if name not in self.made_again:
            self.made_again[name] = problem
            self.tell(f"{name} is made again: {problem}")

    def _make(self, missing: Mapping[str, tuple[Trial, Job]]) -> None:
        self._make_room(missing)
        self._ledger.go_on()
        self._ledger.add(job for _, job in missing.values())
        save_sweep(self._sweep, self._ledger.folder)

        def ended(name: str) -> None:
            self.done += 1
            self.planned = max(0, self.planned - 1)
            self._check(name, missing[name][0])
            seconds = summary_of(self._ledger.run_of(name))["seconds"] or 0
            self.tell(f"{name}: {seconds:.0f} s; at most {duration(self._left())} left")

        passed_in = lambda config: self.own.parts(config.seed)  # noqa: E731
        batch = Batch(self._ledger, set(missing), ended, self._running, passed_in)
        self._began = time.perf_counter()
        self._running(list(missing)[:1])
        try:
            batch.run(self._sweep, self._executor, self.executor, self.tell)
        finally:
            self._seconds += time.perf_counter() - self._began
            self._began = 0.0

    def _make_room(self, missing: Iterable[str]) -> None:
        """Take jobs out of the ledger that would be in the way; what was made of them is kept.

        These are jobs that a worker would run though nobody asks for them now, and those among the
        missing ones that are damaged, or whose run is not what was accepted: they begin anew. One
        that failed goes on from its last checkpoint: it is the same run, of the same code, or it
        would have another name.
        """
        wanted = set(missing)
        there = {name for name in wanted if os.path.lexists(self._ledger.run_of(name))}
        for name in sorted(there.union(self._ledger.names())):
            standing = self._ledger.standing(name)
            is_damaged = standing.state is State.DAMAGED
            if name not in wanted:
                if standing.state is not State.COMPLETED and not is_damaged:
                    self._ledger.retire(name)
            elif is_damaged or name in there:
                self._make_again(name, standing.problem)
                self._ledger.retire(name)
            elif standing.state is State.FAILED and standing.last is not None:
                standing.last.follow({})
            elif standing.state is State.RUNNING and standing.last is not None:
                other = standing.last.lease.process
                if not other.is_gone():
                    self.tell(f"process {other.pid} on {other.host} has {name}: waiting for it")

    def _running(self, names: Sequence[str]) -> None:
        first = self.done + 1
        told = f"runs {first} to {self.done + len(names)}" if len(names) > 1 else f"run {first}"
        left = f"; at most {duration(self._left())} left" if self.done else ""
        self.doing(f"{told} of at most {self.done + self.planned}: {', '.join(names)}{left}")

    def _left(self) -> float:
        """Return the seconds that the planned runs take, if they take as long as those so far."""
        now = time.perf_counter()
        passed = self._seconds + (now - self._began if self._began else 0.0)
        return self.planned * passed / self.done

    # Whether runs can be compared --------------------------------------------------------------

    def _check(self, name: str, trial: Trial) -> None:
        """Raise `AltcoreError` if a run saw other data than the study; the run is retired then."""
        try:
            self._identity(self._config(trial))  # of what files hold now
            self._meet(name, trial.seed)
        except AltcoreError:
            self._ledger.retire(name)
            raise

    def _check_files(self, found: Mapping[str, str]) -> None:
        for name, now in found.items():
            if self._files.setdefault(name, now) != now:
                raise AltcoreError(
                    f"{name} changed while the study ran, and runs cannot be compared: the same "
                    "command begins new ones beside them"
                )

    def _meet(self, name: str, seed: int) -> None:
        """Note what a run of the answer was, and compare what it saw with what an earlier one did.

        Data that only their first batch is known by are those of its seed. A run without any
        checkpoint differs in nothing that is known.
        """
        if not (now := identity_in(self._ledger.run_of(name))):
            return
        first = self._first.setdefault(seed, now)
        changes = [c for c in compare(first, now) if c.kind in ("data", "world_size")]
        if changes:
            told = "; ".join(map(str, changes))
            raise AltcoreError(
                f"the data changed while the study ran, and runs cannot be compared: {told}: the "
                "same command begins new ones beside them, or, if it cannot tell, another --name"
            )
        self.identities[name] = now


def _but_seed_and_rate(identity: Mapping[str, Any]) -> dict[str, Any]:
    config = {k: v for k, v in identity["config"].items() if k not in ("seed", "learning_rate")}
    return {**identity, "config": config}


def _digest_in(name: str) -> str:
    """Return the digest with which a run's name ends."""
    return name.rpartition("-")[2]
