"""One attempt at a job, in this process: the run is trained, and what came of it is told."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from altcore.config import TrainConfig
from altcore.errors import (
    AltcoreError,
    BadInput,
    FailedDisk,
    Interrupted,
    NoSpace,
    chain_of,
    described,
    text_of,
)
from altcore.hooks import describe_settings
from altcore.registry import HOOK_KINDS, find
from altcore.runs import ENDED, ChangedRun, has_summary, summary_of
from altcore.signals import is_from_signal
from altcore.sweep.attempt import Attempt, Held
from altcore.sweep.carry_on import copy_run, newest_step
from altcore.sweep.exits import SIGNAL, Exit
from altcore.sweep.job import RETRIED, Job
from altcore.sweep.retry import DEFAULT_RULES, Rule, cause_of
from altcore.sweep.usage import Usage

OWN = "own"
"""In a job's identity: the names of what its run gets from Python."""
DENIED = (errno.EACCES, errno.EPERM)
DISK = (NoSpace, FailedDisk, OSError)
"""Errors of the sweep's folder, which may pass."""


class Leave(Exception):
    """A signal, or a folder that cannot be written, ends the attempt, and its run can go on."""

    def __init__(self, ended: Exit, cause: BaseException) -> None:
        super().__init__(text_of(cause))
        self.ended, self.cause = ended, cause


@frozen
class _Outcome:
    """What came of training."""

    status: str
    verdict: str = ""
    collapses: Sequence[Mapping[str, Any]] = ()
    error: str = ""
    leaves: BaseException | None = None
    """What took the run from its worker."""


def run_job(
    job: Job,
    held: Held,
    *,
    collapse_fails: bool = False,
    rules: Mapping[str, Rule] = DEFAULT_RULES,
    usage: Usage | None = None,
    passed_in: Callable[[TrainConfig], Mapping[str, Any]] = lambda _: {},
) -> Exit:
    """Train a job's run in the attempt's folder, from where an earlier attempt left it.

    After a failure the run's own fractions are told where the configuration has them as whole
    numbers: a rule may halve them later. If one of the ``rules`` halves settings now, so are those
    that the workload chose. ``usage`` begins with the attempt. ``passed_in`` returns what the run
    gets from Python.

    Raises:
        Leave: if a signal asked the process to leave, or its folder cannot be written for now.
    """
    began, usage = time.perf_counter(), usage or Usage()
    changes: list[str] = []
    came = _train(job, held, changes, passed_in)
    status, error, collapse = came.status, came.error, ""
    if status == "collapsed" and collapse_fails:
        # Of several the last one ended the run.
        last = came.collapses[-1] if came.collapses else {}
        collapse = last.get("cause") or "unknown"
        status, error = "failed", f"it collapsed: {last.get('reason') or came.verdict}"
    ended = Exit(
        status=status,
        error=error,
        verdict=came.verdict,
        collapse=collapse,
        seconds=round(time.perf_counter() - began, 3),
        used=usage.to_plain(),
        changes=changes,
    )
    if came.leaves is not None:
        cause = "" if isinstance(came.leaves, DISK) else SIGNAL
        step = newest_step(held.attempt.run_directory(job.name))
        raise Leave(evolve(ended, cause=cause, checkpoint=step), came.leaves)
    if ended.counts:
        rule = rules.get(cause_of(ended, rules), Rule())
        settings = _to_halve(job, held.lease.changed, with_chosen=bool(rule.halve))
        return evolve(ended, settings=settings)
    return ended


def _train(
    job: Job,
    held: Held,
    changes: list[str],
    passed_in: Callable[[TrainConfig], Mapping[str, Any]],
) -> _Outcome:
    path = held.attempt.work / job.name
    try:
        # Takes seconds, in which a signal may come.
        from altcore.api import train
        from altcore.engine import lasting_changes, process_kept

        if held.before is not None:
            copy_run(held.before, path)
        if has_summary(path):
            known = summary_of(path)
            # A worker that was killed between the end of its run and publishing it.
            if known["status"] in ENDED:
                return _Outcome(known["status"], known["verdict"], known["collapses"])
        # Plugins change something as they are imported, too.
        with lasting_changes(changes), process_kept():
            config = job.train_config(str(held.attempt.work), held.lease.changed)
            if held.lease.changed:
                config = config.evolve(tags=(*config.tags, RETRIED))
            own = passed_in(config)
            check_own(job, own)
            result = train(config, resume=job.name if path.is_dir() else None, **own)
        return _Outcome(result.status, result.verdict, result.summary["collapses"])
    except (Interrupted, NoSpace, FailedDisk) as error:
        return _Outcome("interrupted", error=text_of(error), leaves=error)
    except BaseException as error:
        if (denied := _denied(error, held.attempt.folder)) is not None:
            return _Outcome("interrupted", error=text_of(denied), leaves=denied)
        if isinstance(error, ChangedRun):
            error.hint = _as_it_was(job, held.attempt)
        if isinstance(error, AltcoreError):
            return _Outcome("failed", error=f"{type(error).__name__}: {text_of(error)}")
        if is_from_signal(error):
            return _Outcome("interrupted", error=text_of(error), leaves=error)
        return _Outcome("failed", error=described(error))


def _as_it_was(job: Job, attempt: Attempt) -> str:
    """Return what to do about a run that is not what it was: no sweep allows the change."""
    own = attempt.folder.parents[1]
    sweep, command = own.parents[1].name, "altcore sweep run"
    go_on = f"altcore sweep retry {sweep} {job.name} lets it go on"
    if job.identity:
        go_on, command = "the study's command goes on", "that command"
    return (
        f"bring back what it was made with, and {go_on}; or remove {own}, and {command} "
        "begins it anew"
    )


def check_own(job: Job, own: Mapping[str, Any]) -> None:
    """Raise `BadInput` for a job that trains what only its caller has."""
    missing = [name for name in job.identity.get(OWN, ()) if name not in own]
    if missing:
        raise BadInput(
            f"{job.name} trains with its caller's own {', '.join(missing)}",
            hint="the same call from Python goes on with it",
        )


def _denied(error: BaseException, folder: Path) -> OSError | None:
    """Return the error behind another one by which the system denies to write below a folder.

    Nothing that a job says is the cause of that, and it may pass, as on a shared disk.
    """
    for found in chain_of(error):
        if (
            isinstance(found, OSError)
            and found.errno in DENIED
            and folder in Path(os.fsdecode(found.filename or "")).parents
        ):
            return found
    return None


def _to_halve(job: Job, changed: Mapping[str, Any], *, with_chosen: bool) -> dict[str, Any]:
    """Return the numbers of a run that it did not have so from its job, by dotted key.

    Those are fractions that are given as whole numbers and, ``with_chosen``, what is left to the
    workload, which is built for it.
    """
    try:
        config = job.train_config("runs", changed)
    except BadInput:  # which is why it failed
        return {}
    own = {key: getattr(config, key, None) for key in changed}
    fractions = {key: value for key, value in own.items() if isinstance(value, float)}
    chosen = _left_to_workload(config) if with_chosen else {}
    return {**chosen, **fractions, **_fractions(config)}


def _fractions(config: TrainConfig) -> dict[str, float]:
    """Return the settings that are given as whole numbers, and may be fractions by their types."""
    kinds = {config.workload: ("workload",), config.optimizer: ("optimizer",)}
    found: dict[str, float] = {}
    for owner, given in config.settings.items():
        with suppress(AltcoreError):  # what is not installed stopped the run
            told = describe_settings(find(owner, kinds.get(owner, HOOK_KINDS)).load())
            types = {setting["name"]: setting["type"].split(" | ") for setting in told}
            whole = [n for n in given if type(given[n]) is int and "float" in types.get(n, ())]
            found |= {f"{owner}.{name}": float(given[name]) for name in whole}
    return found


def _left_to_workload(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that a configuration leaves to its workload, as that chose them.

    A workload's facts have them, if they tell anything. It is built anew, since a run whose memory
    was too small may have no record.
    """
    from altcore.engine import build_workload, choose_device

    given = config.settings.get(config.workload, {})
    try:
        facts = build_workload(config, choose_device("cpu")).facts
    except (AltcoreError, MemoryError, RuntimeError):  # too little memory even for that
        return {}
    known = {s["name"] for s in describe_settings(find(config.workload, ("workload",)).load())}
    left = {name: facts[name] for name in facts if name in known and name not in given}
    return {f"{config.workload}.{name}": value for name, value in left.items()}
