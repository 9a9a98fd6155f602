"""Signals that ask the process to leave, from its first moment to its last.

While a run is in progress they wait for the end of its step, and a second SIGINT does not. At any
other time nothing is lost by leaving, so they do not wait at all.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # C's, which has no stubs
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from time import perf_counter
from types import FrameType
from typing import Any, NoReturn

WATCHED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


_NUMBERS = tuple(map(int, WATCHED))
_handler_of = _signal.getsignal  # the one of `signal` makes an enum of some, for ten times the time


class LeaveNow(KeyboardInterrupt):
    """A signal that does not wait. Its handler raises it, and no guard may hold it."""


class Signals:
    """What came of the watched signals, as their handlers note it."""

    def __init__(self, *, ends_process: bool) -> None:
        self.ends_process = ends_process
        """Whether to end the process when a signal does not wait, and not to raise `LeaveNow`."""
        self.asked = 0
        """The first signal that came; 0 before."""
        self.is_waiting = False
        """Whether a signal waits for a run that reads `asked` between two steps."""
        self.asked_at = 0.0
        """When it came, as perf_counter() tells."""
        self.place: Callable[[], str] = lambda: ""
        """Says where the run is, for the line that the process ends with."""
        self.before_end: Callable[[], None] = lambda: None
        """Called before a signal that does not wait ends the process."""
        self.exit_code: int | None = None
        """Of a process that has said why it ends, and has nothing to add about a signal."""
        self._interrupts = 0
        self._before: dict[int, Any] = {}
        self._wakeups: tuple[int, os.stat_result] | None = None
        """The end of a pipe to which C writes the numbers of signals at once, and what it is.

        Its number becomes that of another file if other code closes it."""

    def install(self) -> None:
        """Handle the watched signals; SIGHUP is left alone if it is ignored, as by nohup."""
        is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        watched = [n for n in WATCHED if not (is_ignored and n is signal.SIGHUP)]
        self._before = {number: signal.signal(number, self._note) for number in watched}
        if self.ends_process:
            wakeups, tell = os.pipe()
            os.set_blocking(wakeups, False)
            os.set_blocking(tell, False)
            self._wakeups = wakeups, os.fstat(wakeups)
            signal.set_wakeup_fd(tell, warn_on_full_buffer=False)

    def uninstall(self) -> None:
        """Put back the handlers from before."""
        for number, handler in self._before.items():
            # None is a handler that another program's C code installed: Python cannot put it back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @property
    def name(self) -> str:
        """The name of the first signal that came."""
        return signal.Signals(self.asked).name

    def hear(self) -> None:
        """Note a signal in any thread, if the main one is in C code that lets no handler run."""
        if self._wakeups is None or not self.is_waiting:
            return
        wakeups, pipe = self._wakeups
        with suppress(OSError):  # none came, or other code closed the pipe
            if not os.path.samestat(os.fstat(wakeups), pipe):
                return
            came = [n for n in os.read(wakeups, 4096) if n in self._before]
            if came and not self.asked:
                self.asked, self.asked_at = came[0], perf_counter()

    def leave_now(self, why: str) -> None:
        """Leave in spite of waiting, from any thread: the code that runs now does not end."""
        if self.ends_process:
            self._end(self.asked, f"{_told(self.asked)}: left at once: {why}")
        self.is_waiting = False
        main = threading.main_thread().ident
        if main is not None:
            signal.pthread_kill(main, self.asked)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.exit_code is not None:
            os._exit(self.exit_code)
        if not self.asked:
            self.asked, self.asked_at = number, perf_counter()
        self._interrupts += number == signal.SIGINT
        name = _told(number)
        if self.is_waiting and not (number == signal.SIGINT and self._interrupts > 1):
            if self.ends_process:
                _say(f"{name}: leaving after this step; SIGINT twice leaves at once")
        elif self.ends_process:
            # An exception could be held by whatever code runs now, or be printed as a traceback.
            self._end(number, f"{name}: left at once")
        else:
            raise LeaveNow(signal.Signals(number).name)

    def _end(self, number: int, why: str) -> NoReturn:
        _say("; ".join(filter(None, (why, self.place()))))
        with suppress(Exception):  # such as a full disk: nobody is left to be told
            self.before_end()
        os._exit(128 + number)


_in_force: Signals | None = None


def handle_signals() -> None:
    """Handle the watched signals until the process ends."""
    global _in_force
    _in_force = Signals(ends_process=True)
    _in_force.install()


def ending(exit_code: int) -> None:
    """Let a signal from now on end the process in silence, with the code that it ends with.

    torchrun sends one to every rank when it loses one, of which they speak themselves.
    """
    if _in_force is not None and _in_force.ends_process:
        _in_force.exit_code = exit_code


def ask_to_leave(number: int) -> bool:
    """Ask the run in progress to leave after its step, as a signal of this number does.

    From any thread. Returns False, and asks nobody, if none waits for that.
    """
    if _in_force is None or not _in_force.is_waiting:
        return False
    if not _in_force.asked:
        _in_force.asked, _in_force.asked_at = number, perf_counter()
    return True


def forget_signal() -> None:
    """Take a signal for answered: what runs next in this process is not asked to leave."""
    if _in_force is not None:
        _in_force.asked, _in_force._interrupts = 0, 0


@contextmanager
def handling_signals() -> Iterator[Signals]:
    """Handle the watched signals within the context, unless they are handled already.

    Outside the main thread, where Python delivers no signals, nothing is handled.
    """
    global _in_force
    if threading.current_thread() is not threading.main_thread():
        yield Signals(ends_process=False)
        return
    if _in_force is not None:
        yield _in_force
        return
    _in_force = Signals(ends_process=False)
    _in_force.install()
    try:
        yield _in_force
    finally:
        _in_force.uninstall()
        _in_force = None


def handlers() -> list[Any]:
    """Return the handlers of the watched signals, in a fraction of a microsecond."""
    return [_handler_of(number) for number in _NUMBERS]


def put_back_handlers(before: list[Any]) -> list[str]:
    """Set the handlers that are not as `handlers` returned them; returns the signals' names."""
    now = handlers()
    if now == before:
        return []
    names = []
    for number, own, other in zip(WATCHED, before, now, strict=True):
        if own != other:
            names.append(number.name)
            with suppress(ValueError, TypeError):  # in another thread; C code's own
                signal.signal(number, own)
    return names


def is_from_signal(error: BaseException) -> bool:
    """Whether a signal gave rise to an exception, and not code that raised it.

    Where nobody handles the signals, as outside a run, Python's own handler raises what code may
    raise as well; it is then taken to come from SIGINT.
    """
    return isinstance(error, LeaveNow) or (
        isinstance(error, KeyboardInterrupt)
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )


def _told(number: int) -> str:
    """Return a signal's name. What starts the ranks of a run stops all when one of them ends."""
    name = signal.Signals(number).name
    if number == signal.SIGTERM and os.environ.get("WORLD_SIZE", "1") != "1":
        return f"{name} (another rank ended, or somebody stops all of them)"
    return name


def _say(text: str) -> None:
    # print() must not be called again while it is at work, which a handler cannot know.
    with suppress(OSError):
        os.write(2, f"altcore: {text}\n".encode())


@contextmanager
def not_waiting() -> Iterator[None]:
    """Let a signal end the process at once, without a handler: C code that waits runs none."""
    is_main = threading.current_thread() is threading.main_thread()
    before = {n: signal.getsignal(n) for n in WATCHED} if is_main else {}
    handled = [n for n, own in before.items() if own not in (signal.SIG_IGN, signal.SIG_DFL, None)]
    for number in handled:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, before[number])


def spare_spawned_children() -> None:
    """Let children that `multiprocessing` spawns from now on be as deaf as those that it forks.

    They inherit which signals are blocked, and nothing else. SIGTERM must end them: so one for the
    whole group does, too.
    """
    # Its import is a tenth of a command's start, and only runs have such children.
    from multiprocessing import util

    spawn = util.spawnv_passfds  # by which all of them are made

    def spawn_deaf(path: bytes, args: Sequence[Any], passfds: Sequence[int]) -> int:
        handled = set() if _in_force is None else {*_in_force._before} - {signal.SIGTERM}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, handled)
        try:
            return spawn(path, args, passfds)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    util.spawnv_passfds = spawn_deaf


def _ignore_in_child() -> None:
    """Let a forked child, such as a loader's worker, leave its end to the parent.

    A signal for the whole process group is the parent's affair, which needs its children until it
    has saved. SIGTERM from the parent itself, as of `multiprocessing`, still ends the child.
    """
    global _in_force
    if _in_force is None or not _in_force._before:
        return
    for number in _in_force._before:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if _in_force._wakeups is not None:
        signal.set_wakeup_fd(-1)  # or the parent would take the child's signals for its own
    _in_force = None
    if sys.platform == "linux":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()
    else:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _obey(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(128 + signal.SIGTERM)


os.register_at_fork(after_in_child=_ignore_in_child)
