"""A sweep as an executor gets it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from altcore.errors import BadInput, Source, keyed, located
from altcore.hooks import Executor, Placing, Scripted, build
from altcore.registry import find
from altcore.sweep.ledger import Ledger, State
from altcore.sweep.progress import Progress
from altcore.sweep.sweep_file import SweepFile
from altcore.sweep.time_left import TimeLeft
from altcore.sweep.worker import Worker
from altcore.yaml_files import flow_parts, load_yaml, source_of

DEFAULT = "local"


def make_executor(told: str, settings: Mapping[str, Mapping[str, Any]] | None = None) -> Executor:
    """Return the executor that a text such as ``local:2`` or ``slurm:time=60,mem=8G`` means.

    A bare value is that of the executor's first setting. ``settings`` of executors, by name, hold
    where the text gives none.
    """
    name, _, rest = told.partition(":")
    cls = find(name, ("executor",)).load()
    given: dict[str, Any] = {}
    for i, part in enumerate(filter(None, flow_parts(rest))):
        key, equals, value = part.partition("=")
        if not equals:
            if i:
                raise BadInput(f"{part!r} is not KEY=VALUE", key="--executor", part=told)
            key, value = cls.__attrs_attrs__[0].name, part
        if key in given:
            raise BadInput(f"{key} is given twice", key="--executor", part=told)
        given[key] = load_yaml(value, Source(flag="--executor"), key)
    made: Executor = build(cls, {**(settings or {}).get(name, {}), **given}, name)
    return made


def check_executors(sweep: SweepFile) -> None:
    """Raise `BadInput` for an executor of the file that is not there, or refuses a setting."""
    for name, settings in sweep.executors.items():
        at = {f"{name}.{key}": source_of(settings, key) for key in settings}
        with located({**at, name: source_of(sweep.executors, name)}):
            with keyed(name):
                cls = find(name, ("executor",)).load()
            build(cls, settings, name)


def script_of(sweep: SweepFile, ledger: Ledger, executor: str) -> str:
    """Return the batch script of an executor. Raises `BadInput` if it has none."""
    made = make_executor(executor, sweep.executors)
    if not isinstance(made, Scripted):
        name = executor.partition(":")[0]
        raise BadInput(f"{name!r} starts workers without a batch script", key="--executor")
    return made.script(placing_of(sweep, ledger, executor, print))


def worker_of(
    sweep: SweepFile,
    ledger: Ledger,
    executor: str,
    tell: Callable[[str], None],
    *,
    is_own_process: bool = False,
    time_left: TimeLeft | None = None,
) -> Worker:
    """Return a worker of a sweep, which begins only jobs for which its time is enough."""
    return Worker(
        ledger,
        sweep.lost_after,
        collapse_fails=sweep.collapse_is == "failure",
        fail_fast=sweep.fail_fast,
        executor=executor,
        tell=tell,
        timeout=sweep.timeout_minutes and 60 * sweep.timeout_minutes,
        is_own_process=is_own_process,
        may_begin=time_left.is_enough if time_left else lambda _: True,
    )


def placing_of(
    sweep: SweepFile,
    ledger: Ledger,
    executor: str,
    tell: Callable[[str], None],
    progress: Progress | None = None,
) -> Placing:
    """Return what an executor needs to know of a sweep; ``progress`` tells people of its jobs."""
    name = executor.partition(":")[0]

    def count(*states: State) -> int:
        if ledger.is_stopped():
            return 0
        return sum(ledger.standing(job.name).state in states for job in ledger.jobs())

    def attempts() -> int:
        return sum(len(ledger.standing(name).attempts) for name in ledger.names())

    folder = ledger.folder
    worker = worker_of(sweep, ledger, name, tell)
    if progress is not None:
        worker.note = lambda _: progress.look(at_once=True)
    return Placing(
        folder=folder,
        command=(
            *(sys.executable, "-m", "altcore", "sweep", "work", folder.name),
            *("--sweeps-dir", str(folder.parent), "--executor", name),
        ),
        work=worker.work,
        left=partial(count, State.WAITING, State.RUNNING),
        waiting=partial(count, State.WAITING),
        attempts=attempts,
        workers_per_gpu=sweep.declared.workers_per_gpu,
        tell=tell,
        look=progress.look if progress is not None else lambda: None,
    )
