"""Leaving a run on a signal: between two steps, after a checkpoint."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from altcore.errors import Interrupted
from altcore.signals import Signals, handling_signals


@contextmanager
def waiting_signals(directory: Path) -> Iterator[Signals]:
    """Let signals wait for the run in ``directory``, which asks by `leave_if_asked`.

    Raises:
        Interrupted: after a run that ended while a signal waited.
    """
    with handling_signals() as signals:
        signals.is_waiting, signals.place = True, lambda: _place(directory)
        try:
            yield signals
        finally:
            signals.is_waiting, signals.place = False, lambda: ""
        if signals.asked:
            raise _interrupted(signals.asked, "when the run was over")


def leave_if_asked(asked: int, save: Callable[[], None]) -> None:
    """Raise `Interrupted` after ``save`` if a signal came: to this process, or to another rank.

    ``asked``: the signal's number, on which all ranks agreed; 0 for none.
    """
    if asked:
        save()
        raise _interrupted(asked, "after a checkpoint")


def _interrupted(asked: int, when: str) -> Interrupted:
    return Interrupted(f"{signal.Signals(asked).name}: left {when}", asked)


def _place(directory: Path) -> str:
    """Say where a run is that does not come to its end."""
    saved = sorted((directory / "checkpoints").glob("step-*/manifest.json"))
    name = directory.name
    if not saved:
        return f"run {name} has no checkpoint: start it again"
    return f"the last checkpoint is {saved[-1].parent}: --resume {name} goes on from there"
