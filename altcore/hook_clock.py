"""How long others' code takes: what hangs is named while it does, slow plugins at the end."""

from __future__ import annotations

import faulthandler
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from time import perf_counter, process_time

from attrs import define, field, frozen

from altcore.builtin_types import printable
from altcore.log import log
from altcore.open_files import OpenFiles, lowest_free
from altcore.signals import Signals

PATIENCE = {"run_end": 15.0}
"""Seconds for which a signal waits for a call of a hook: a tracker has 10 for its end."""
LEAST_PATIENCE = 5.0
"""Seconds for any other hook."""
SLOW_SHARE, SLOW_SECONDS = 0.2, 10.0
"""A plugin is slow if it took more than this share of the steps' time, and more than this."""
STUCK = 30.0
"""Least seconds without a sign of this thread after which faulthandler writes all stacks. It reads
them without the interpreter's lock: were it early, threads would still run, and that may crash."""
STOPPED = 1.0
"""Seconds that the thread which watches may be late. If it is later, and nothing was computed, the
whole process was stopped, as by Ctrl-Z or a debugger."""
FRAMES = 8
"""Innermost frames of a stack that are shown."""


@frozen(eq=False)
class CallInProgress:
    """Code of others that runs now."""

    who: object
    doing: str
    began: float
    is_hook: bool
    """Whether a signal leaves it if it takes long: a step's own work may."""
    next_file: int
    """The number that the next open file would have had as it began."""


@define(eq=False)
class HookClock:
    """Notes which plugin is called since when, and what all its calls took."""

    timeout: float = 60.0
    """Seconds after which a call is reported."""
    seconds: dict[object, float] = field(init=False, factory=dict)
    """What the hooks of each plugin took within steps."""
    files: OpenFiles = field(init=False, factory=OpenFiles)
    calls: list[CallInProgress] = field(init=False, factory=list)
    """Those in progress. A hook may call others by its events."""
    steps_began: float | None = field(init=False, default=None)

    def enter(self, who: object, doing: str, *, is_hook: bool = True) -> None:
        """Start the clock of a call."""
        self.calls.append(CallInProgress(who, doing, perf_counter(), is_hook, lowest_free()))

    def leave(self, *, is_in_step: bool) -> None:
        """Stop it."""
        call = self.calls.pop()
        self.files.add(call.who, lowest_free() - call.next_file)
        if is_in_step:
            self.steps_began = self.steps_began or call.began
            self.seconds[call.who] = self.seconds.get(call.who, 0.0) + perf_counter() - call.began

    @contextmanager
    def watching(self, signals: Signals | None = None) -> Iterator[None]:
        """Let a thread report calls that take too long; name the slow plugins at the end.

        A hook that does not end is left, if a signal waits for it.
        """
        stop = threading.Event()
        about = (stop, threading.get_ident(), signals or Signals(ends_process=False))
        thread = threading.Thread(target=self._watch, args=about, name="altcore", daemon=True)
        thread.start()
        before = _CLOCK.set(self)
        try:
            with self.files.named():
                yield
        finally:
            _CLOCK.reset(before)
            stop.set()
            thread.join()
            self.tell_slow()

    def _watch(self, stop: threading.Event, watched: int, signals: Signals) -> None:
        told: CallInProgress | None = None
        interval = min(1.0, self.timeout / 4, LEAST_PATIENCE / 4)
        stopped = _Stopped(perf_counter(), process_time())
        with _stack_if_stuck(max(self.timeout, STUCK) + interval) as still_alive:
            while not stop.wait(interval):
                still_alive()
                stopped.look(interval)
                signals.hear()
                calls = self.calls[:]  # they may end at any time
                if not calls:
                    continue
                now, last = perf_counter(), calls[-1]
                hook = next((call for call in calls if call.is_hook), None)
                since = max(signals.asked_at, stopped.until)
                if hook is not None and signals.asked and _is_overdue(hook, now, since):
                    self._print_stack(watched)
                    taken = f"{now - hook.began:.0f} s"
                    signals.leave_now(f"{hook.who} has been in {hook.doing} for {taken}")
                elif last is not told and now - max(last.began, stopped.until) >= self.timeout:
                    told = last
                    log.warning(f"{last.who} has been in {last.doing} for {self.timeout:g} s")
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


_CLOCK: ContextVar[HookClock | None] = ContextVar("clock", default=None)
"""The one that is watching."""


@contextmanager
def timing(who: str, doing: str) -> Iterator[None]:
    """Let the clock that is watching report a call that takes too long; it is no hook."""
    clock = _CLOCK.get()
    if clock is None:
        yield
        return
    clock.enter(who, doing, is_hook=False)
    try:
        yield
    finally:
        clock.leave(is_in_step=False)


def _is_overdue(hook: CallInProgress, now: float, since: float) -> bool:
    patience = PATIENCE.get(hook.doing, LEAST_PATIENCE)
    return now - max(hook.began, since) > patience


@define
class _Stopped:
    """Notes when the process was stopped: no call is to blame for that time."""

    _looked: float
    _computed: float
    until: float = 0.0
    """When it went on. A call's time counts from there."""

    def look(self, interval: float) -> None:
        """Look, ``interval`` seconds after the last time unless the process was stopped."""
        now, computed = perf_counter(), process_time()
        late = now - self._looked - interval
        # Code in C that keeps the interpreter's lock makes this thread late as well.
        if late > STOPPED and computed - self._computed < late / 2:
            if not self.until:
                log.info(f"the process was stopped for {late:.0f} s: nobody is blamed for it")
            self.until = now
        self._looked, self._computed = now, computed


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
