"""The contract with executors: what places the workers of a sweep.

An executor is an attrs class whose fields are its settings, with the method ``run``. It starts
workers and returns when they are done. What is to be run, and what was, is in the sweep's folder;
an executor owns no fact, so another one may go on at any time.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, runtime_checkable

from attrs import frozen


@frozen(kw_only=True)
class Placing:
    """What an executor is given."""

    folder: Path
    """The sweep's folder. Every worker must reach it by this path."""
    command: tuple[str, ...]
    """Starts a worker, which takes jobs until none is left. Its exit code is 0 then; another one
    says that it left or broke, and that the jobs are still to be run."""
    work: Callable[[], int]
    """The same loop in this process; returns how many attempts it made."""
    left: Callable[[], int]
    """Counts the jobs that have no result and may still get one."""
    attempts: Callable[[], int]
    """Counts the attempts made so far: workers that make none are of no use."""
    waiting: Callable[[], int] = lambda: 1
    """Counts the jobs among these that nobody holds: with none, another worker finds nothing to
    begin."""
    workers_per_gpu: int = 2
    """How many workers share a GPU, unless the executor was told another number."""
    tell: Callable[[str], None]
    """Takes a line for people."""
    look: Callable[[], None] = lambda: None
    """Tells people which jobs began and ended since the last call. To be called again and again
    while workers in other processes run, as often as you like."""


class Executor(Protocol):
    """What a plugin of the kind ``executor`` is."""

    def run(self, placing: Placing) -> None:
        """Place workers until no job is left, or until they can do no more."""


@runtime_checkable
class Lasting(Protocol):
    """An executor that can keep its workers from one call of ``run`` to the next."""

    def lasting(self) -> AbstractContextManager[None]:
        """Keep them within the context, for jobs that are added to the same folder.

        ``run`` then returns when no job is left, and the workers end with the context.
        """


@runtime_checkable
class Scripted(Protocol):
    """An executor that hands scripts to a batch system."""

    def script(self, placing: Placing) -> str:
        """Return the script; submit and write nothing."""
