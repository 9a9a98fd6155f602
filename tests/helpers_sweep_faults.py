"""What the tests of a sweep's faults share: toy sweeps, and what each job must have at the end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from helpers import metrics_bytes, weights_sha256

from altcore.runs import summary_of
from altcore.sweep import Ledger, State, SweepFile, Worker, jobs_of

BASE = {
    "gpt.size": "tiny",
    "gpt.n_layer": 1,
    "gpt.n_embd": 8,
    "gpt.block_size": 8,
    "max_steps": 3,
    "warmup_steps": 0,
    "eval_interval": 0,
    "eval_steps": 1,
    "checkpoint_interval": 1,
    "no_plugins": ["progress", "page", "failure-report"],
}
"""Keys of a run that takes a tenth of a second."""


def toy(folder: Path, corpus: Path, keys: dict[str, Any] | None = None, **asked: Any) -> Ledger:
    """Make a sweep of runs as small as they can be: one job unless more is ``asked``."""
    sweep = SweepFile(base={**BASE, "gpt.data": str(corpus), **(keys or {})}, **asked)
    ledger = Ledger(folder, sweep.rules)
    ledger.add(jobs_of(sweep))
    return ledger


def work(ledger: Ledger, lost_after: float = 60, **keys: Any) -> int:
    """Work on a sweep in this process, in silence."""
    return Worker(ledger, lost_after, **{"tell": lambda _: None, **keys}).work()


def bits_of(ledger: Ledger) -> dict[str, tuple[bytes, str]]:
    """Return the metrics and the weights of each accepted run, by name."""
    runs = sorted((ledger.folder / "runs").iterdir())
    return {run.name: (metrics_bytes(run), weights_sha256(run)) for run in runs}


def check_complete(ledger: Ledger, undisturbed: dict[str, tuple[bytes, str]]) -> None:
    """Assert that every job has one accepted result, equal to that of an undisturbed sweep."""
    jobs = ledger.names()
    assert [ledger.standing(name).state for name in jobs] == [State.COMPLETED] * len(jobs)
    assert bits_of(ledger) == {name: undisturbed[name] for name in jobs}
    for name in jobs:
        assert summary_of(ledger.run_of(name))["status"] == "finished"
        # What was refused was moved nowhere, and of what was accepted nothing is left behind.
        ends = [a.exit.status for a in ledger.standing(name).attempts if a.exit]
        assert ends.count("finished") <= 1
        assert set(ends) <= {"finished", "lost", "interrupted", "refused"}


def started(action: Callable[[], Any]) -> int:
    """Fork a process that does something and ends; returns its id."""
    child = os.fork()
    if child:
        return child
    try:
        action()
    finally:
        os._exit(0)


@contextmanager
def nothing_outside(folder: Path) -> Iterator[None]:
    """Assert that the context changes no file and no name below a folder."""

    def held() -> dict[Path, bytes | None]:
        return {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}

    before = held()
    yield
    assert held() == before
