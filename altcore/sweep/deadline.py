"""The longest time of an attempt: asked to leave when it is over, and ended if it does not."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from attrs import define, field

from altcore.signals import ask_to_leave

GRACE = 60.0
"""Seconds in which a run that is late may save a checkpoint and leave."""
AGAIN = 0.1
"""Seconds between two tries to ask a run that is late: it is being built, or ends."""


@define
class Deadline:
    """Whether an attempt was late."""

    is_over: bool = field(init=False, default=False)


@contextmanager
def deadline(
    seconds: float | None, hangs: Callable[[], None], grace: float = GRACE
) -> Iterator[Deadline]:
    """Ask a run to leave when its attempt has taken ``seconds``, as SIGUSR1 does.

    No signal is sent: one that came when the run was over, or not yet begun, would end the process.

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
        last = time.monotonic() + grace
        while not ask_to_leave(signal.SIGUSR1):
            if ended.wait(AGAIN):
                return
            if time.monotonic() > last:
                break
        if not ended.wait(max(0.0, last - time.monotonic())):
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
