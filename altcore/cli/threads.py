"""What plugins left running, threads and processes: Python would wait for each, however long."""

from __future__ import annotations

import sys
import threading
from contextlib import suppress
from os import _exit as end_process  # later it is refused to code of others
from time import monotonic

from altcore.cli.terminal import say

PATIENCE = 60.0
"""Seconds that threads have to end by themselves when the command is over."""


def leave_threads(code: int) -> None:
    """Wait for all of them; if some do not end, name them and end the process with ``code``."""
    _end_pools()
    if names := still_running(PATIENCE):
        said = f"left {', '.join(names)} running, {PATIENCE:g} s after the command was over"
        say(said)
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        end_process(code)


def _end_pools() -> None:
    """Let pools of `concurrent.futures` end, as Python does before it waits for threads.

    Theirs wait for work until then, as those of torch.compile do. Python has no other name for it.
    """
    for pools in ("concurrent.futures.thread", "concurrent.futures.process"):
        if end := getattr(sys.modules.get(pools), "_python_exit", None):
            threading.Thread(target=end, daemon=True).start()


def still_running(seconds: float) -> list[str]:
    """Return the names of what Python would wait for longer than ``seconds``."""
    deadline, here = monotonic() + seconds, threading.current_thread()
    threads = [t for t in threading.enumerate() if t is not here and not t.daemon]
    # Of a package that was never imported there are none, and importing it takes time.
    package = sys.modules.get("multiprocessing")
    children = [] if package is None else [c for c in package.active_children() if not c.daemon]
    for left in (*threads, *children):
        left.join(max(0.0, deadline - monotonic()))
    return [
        *(f"thread {t.name}" for t in threads if t.is_alive()),
        *(f"process {c.name}" for c in children if c.is_alive()),
    ]
