"""Leaving a run on a signal: between two steps, after a checkpoint."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import define, field

from altcore.errors import Interrupted, described
from altcore.signals import Signals, handling_signals, spare_spawned_children

spare_spawned_children()


@define(eq=False)
class Leaving:
    """Lets signals wait for a run, which asks between two steps whether one came."""

    is_alone: bool = True
    """Whether no other rank has to leave at the same step."""
    agreed: int = 0
    """The number of the signal that all ranks know of, or 0."""
    signals: Signals = field(init=False, factory=lambda: Signals(ends_process=False))

    @property
    def asked(self) -> int:
        """The number of the signal by which the run leaves now, or 0."""
        return self.signals.asked if self.is_alone else self.agreed

    def if_asked(self, save: Callable[[], None] = lambda: None) -> None:
        """Raise `Interrupted` after ``save`` if a signal came: to this process, or another rank."""
        if self.asked:
            save()
            raise _interrupted(self.asked, "after a checkpoint")

    @contextmanager
    def losing_workers(self) -> Iterator[None]:
        """Count an error after a signal as leaving: the signal may have ended a loader's workers.

        torch tells their end by an exception wherever the process is.

        Raises:
            Interrupted: for such an error, which it names.
        """
        try:
            yield
        except Exception as error:
            if isinstance(error, Interrupted) or not (self.is_alone and self.signals.asked):
                raise
            when = f"without a checkpoint of this step: {described(error)}"
            raise _interrupted(self.signals.asked, when) from error

    @contextmanager
    def waiting(self, directory: Path) -> Iterator[Signals]:
        """Let signals wait for the run in ``directory``.

        Raises:
            Interrupted: after a run that ended while a signal waited.
        """
        with handling_signals() as self.signals:
            signals = self.signals
            signals.is_waiting, signals.place = True, lambda: _place(directory)
            try:
                with self.losing_workers():  # another may be told of while the run ends
                    yield signals
            finally:
                signals.is_waiting, signals.place = False, lambda: ""
            if signals.asked:
                raise _interrupted(signals.asked, "when the run was over")


def _interrupted(asked: int, when: str) -> Interrupted:
    return Interrupted(f"{signal.Signals(asked).name}: left {when}", asked)


def _place(directory: Path) -> str:
    """Say where a run is that does not come to its end."""
    saved = sorted((directory / "checkpoints").glob("step-*/manifest.json"))
    name = directory.name
    if not saved:
        return f"run {name} has no checkpoint: start it again"
    return f"the last checkpoint is {saved[-1].parent}: --resume {name} goes on from there"
