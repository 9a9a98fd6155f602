"""Leaving on a signal: it sets a flag, which is read between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from attrs import define, field

from altcore.errors import Interrupted

WATCHED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@define(eq=False)
class Signals:
    """Context in which SIGINT, SIGTERM and SIGUSR1 ask the run to leave after the step.

    A second SIGINT does not wait for the step. Outside the main thread, where Python delivers no
    signals, nothing is changed.
    """

    asked: int = 0
    _before: dict[int, Any] = field(factory=dict)

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in WATCHED}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.asked = number

    def leave_if_asked(self, asked: int, save: Callable[[], None]) -> None:
        """Raise `Interrupted` after ``save`` if a signal came: to this process, or to another rank.

        ``asked``: the signal's number, on which all ranks agreed; 0 for none.
        """
        if asked:
            save()
            name = signal.Signals(asked).name
            raise Interrupted(f"{name}: left after a checkpoint", asked)
