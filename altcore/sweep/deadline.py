"""The longest time of an attempt: asked to leave when it is over, and ended if it does not."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from attrs import define, field

GRACE = 60.0
"""Seconds in which a run that is late may save a checkpoint and leave."""


@define
class Deadline:
    """Whether an attempt was late."""

    is_over: bool = field(init=False, default=False)


@contextmanager
def deadline(
    seconds: float | None, hangs: Callable[[], None], grace: float = GRACE
) -> Iterator[Deadline]:
    """Send this process SIGUSR1 when an attempt has taken ``seconds``, as if it was asked to leave.

    Args:
        seconds: None for ever.
        hangs: called in another thread if the attempt has not ended ``grace`` seconds later.
        grace: the seconds in which a run saves its state.
    """
    told, ended = Deadline(), threading.Event()

    def wait() -> None:
        if ended.wait(seconds):
            return
        told.is_over = True
        os.kill(os.getpid(), signal.SIGUSR1)
        if not ended.wait(grace):
            hangs()

    thread = threading.Thread(target=wait, name="altcore deadline", daemon=True)
    if seconds is not None:
        thread.start()
    try:
        yield told
    finally:
        ended.set()
        if seconds is not None:
            thread.join()
