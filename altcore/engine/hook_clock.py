"""How long plugins take: one that hangs is named while it does, and slow ones at the end."""

from __future__ import annotations

import faulthandler
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import perf_counter

from attrs import define, field

from altcore.builtin_types import printable
from altcore.engine.plugins import Plugin
from altcore.log import log
from altcore.signals import Signals

PATIENCE = {"run_end": 15.0}
"""Seconds for which a signal waits for a call of a hook: a tracker has 10 for its end."""
LEAST_PATIENCE = 5.0
"""Seconds for any other hook."""
SLOW_SHARE, SLOW_SECONDS = 0.2, 10.0
"""A plugin is slow if it took more than this share of the steps' time, and more than this."""
FRAMES = 8
"""Innermost frames of a stack that are shown."""


@define(eq=False)
class HookClock:
    """Notes which plugin is called since when, and what all its calls took."""

    timeout: float = 60.0
    """Seconds after which a call is reported."""
    seconds: dict[Plugin, float] = field(init=False, factory=dict)
    """What the calls of each plugin took within steps."""
    calls: list[tuple[Plugin, str, float]] = field(init=False, factory=list)
    """The calls in progress: who, doing what, since when. A hook may call others by its events."""
    steps_began: float | None = field(init=False, default=None)

    def enter(self, who: Plugin, doing: str) -> None:
        """Start the clock of a call."""
        self.calls.append((who, doing, perf_counter()))

    def leave(self, *, is_in_step: bool) -> None:
        """Stop it."""
        who, _, began = self.calls.pop()
        if is_in_step:
            self.steps_began = self.steps_began or began
            self.seconds[who] = self.seconds.get(who, 0.0) + perf_counter() - began

    @contextmanager
    def watching(self, signals: Signals | None = None) -> Iterator[None]:
        """Let a thread report calls that take too long; name the slow plugins at the end.

        A call that does not end is left, if a signal waits for it.
        """
        stop = threading.Event()
        about = (stop, threading.get_ident(), signals or Signals(ends_process=False))
        thread = threading.Thread(target=self._watch, args=about, name="altcore", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self.tell_slow()

    def _watch(self, stop: threading.Event, watched: int, signals: Signals) -> None:
        told: tuple[Plugin, str, float] | None = None
        interval = min(1.0, self.timeout / 4, LEAST_PATIENCE / 4)
        with _stack_if_stuck(self.timeout + interval) as still_alive:
            while not stop.wait(interval):
                still_alive()
                signals.hear()
                calls = self.calls[:]  # they may end at any time
                if not calls:
                    continue
                who, doing, began = calls[0]
                now = perf_counter()
                waited = now - max(began, signals.asked_at)
                if signals.asked and waited > PATIENCE.get(doing, LEAST_PATIENCE):
                    self._print_stack(watched)
                    signals.leave_now(f"{who} has been in {doing} for {now - began:.0f} s")
                elif calls[-1] is not told and now - calls[-1][2] >= self.timeout:
                    told = who, doing, _ = calls[-1]
                    with suppress(Exception):  # of a logger, or a stream, that a plugin broke
                        log.warning(f"{who} has been in {doing} for {self.timeout:g} s")
                    self._print_stack(watched)

    @staticmethod
    def _print_stack(thread: int) -> None:
        # Not by the log, which has one line for each message.
        stack = traceback.format_stack(sys._current_frames().get(thread))
        with suppress(Exception):  # of a stream that a plugin closed or replaced
            print(printable("".join(stack[-FRAMES:])), file=sys.stderr, flush=True)

    def tell_slow(self) -> None:
        """Name the plugins that took much of the steps' time, with their share."""
        total = perf_counter() - (self.steps_began or perf_counter())
        for who, seconds in self.seconds.items():
            if seconds > SLOW_SECONDS and seconds > SLOW_SHARE * total:
                share = f"{seconds / total:.0%} of the time of the steps"
                log.warning(f"{who} took {share} ({seconds:.0f} s)")


@contextmanager
def _stack_if_stuck(timeout: float) -> Iterator[Callable[[], None]]:
    """Let faulthandler write all stacks if the yielded function is not called for too long.

    Code in C that does not let go of the interpreter keeps every thread of Python waiting.
    """
    stream = sys.__stderr__
    if stream is None or stream.closed:
        yield lambda: None
        return

    def still_alive() -> None:
        faulthandler.dump_traceback_later(timeout, file=stream)

    still_alive()
    try:
        yield still_alive
    finally:
        faulthandler.cancel_dump_traceback_later()
