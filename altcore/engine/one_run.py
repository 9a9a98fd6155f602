"""One run at a time in a process: all threads share the random states and flags that a run sets."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from altcore.engine.randomness import random_states_kept
from altcore.errors import BadInput

_training = threading.RLock()
_depth = 0
"""How many runs are within each other now."""


@contextmanager
def only_run() -> Iterator[None]:
    """Raise `BadInput` if another thread trains a run: neither would compute what it does alone.

    The same thread may train one within another, as a hook or a function of data may: the outer one
    finds its random states as they were.
    """
    global _depth
    held = _training  # a forked child makes another
    if not held.acquire(blocking=False):
        raise BadInput(
            "another thread of this process trains a run, and they would share the random states "
            "and the flags of torch",
            hint="train one after the other, or each in a process of its own",
        )
    _depth += 1
    try:
        with random_states_kept() if _depth > 1 else nullcontext():
            yield
    finally:
        _depth -= 1
        held.release()


def _begin_anew() -> None:
    """Forget the threads of the parent, which a forked child has not."""
    global _training, _depth
    _training, _depth = threading.RLock(), 0


os.register_at_fork(after_in_child=_begin_anew)
