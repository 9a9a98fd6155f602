"""All that an observer may not change of the process, and what of it a reporter owns.

Some of it is nobody's to change for longer than a run: the next one would compute otherwise.
"""

from __future__ import annotations

import atexit
import gc
import io
import locale
import logging
import os
import resource
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch.overrides import _get_current_function_mode
from torch.utils._python_dispatch import _get_current_dispatch_mode

from altcore.engine.global_hooks import GlobalHooks, registries
from altcore.engine.torch_flags import FLAGS, Flag
from altcore.engine.trespass import Names, Possession, RandomStates, Value, attribute

SHOWN = 4
"""Modules that a message names."""


def of_process(device: torch.device, kind: str) -> Iterator[Possession]:
    """Yield what an observer of this ``kind`` may not change.

    A reporter may send from threads of its own, have them stopped as Python ends, and set variables
    for the library that it sends with.
    """
    is_reporter = kind == "reporter"
    # First of all: a mode that is not left sees whatever is looked at after it.
    yield ModeStack(torch._C._len_torch_dispatch_stack, _leave_dispatch_mode)
    yield RandomStates(device)
    for name in ("stdout", "stderr"):
        yield Stream(name)
        if not is_reporter:  # a reporter may draw on the terminal
            yield attribute(f"sys.{name}", sys, name)
    yield from _of_flags()
    if threading.current_thread() is threading.main_thread():
        yield from _of_signals()
    is_imported = _watching_imports()
    yield Environment(lambda: is_reporter or is_imported())
    yield Filters(is_imported)
    yield Modules()
    if not is_reporter:
        yield Value(*EXCEPTHOOK)
        yield Threads()
        yield AtExit(is_imported)
    for owner in (torch, torch.nn.functional, torch.Tensor, torch.nn.Module, torch.optim.Optimizer):
        yield Names(owner)
    yield from _of_hooks()


@contextmanager
def process_kept(*, may_add_variables: bool = False) -> Iterator[None]:
    """Put back after a run what it changed of the process, whoever of its plugins did that.

    If it ``may_add_variables``, those stay in the environment that nobody had: the libraries that
    reporters send with set some, for as long as the process lives.

    Random states are left alone, since every run seeds them. So are names of torch's modules, which
    torch itself binds anew as it compiles, and what cannot be put back, such as threads.
    """
    held = [
        ModeStack(torch._C._len_torch_dispatch_stack, _leave_dispatch_mode),
        *(attribute(f"sys.{name}", sys, name) for name in ("stdout", "stderr")),
        *_of_flags(),
        Value(*EXCEPTHOOK),
        *(_of_signals() if threading.current_thread() is threading.main_thread() else ()),
        Environment(lambda: may_add_variables),
        Value("the switch interval", sys.getswitchinterval, sys.setswitchinterval),
        Filters(lambda: False),
        Modules(),
        *_of_hooks(),
    ]
    try:
        yield
    finally:
        for possession in held:
            with suppress(Exception):  # a working directory may be gone
                if possession.is_changed():
                    possession.put_back()


def _of_flags() -> Iterator[Possession]:
    for flag in (*FLAGS, *PROCESS_FLAGS):
        with suppress(RuntimeError):  # torch refuses to read some that a user set in two ways
            yield Value(*flag)


def _of_hooks() -> Iterator[Possession]:
    """Yield the hooks that torch calls for every module, optimizer and saved tensor."""
    for _, whose, held in registries():
        yield GlobalHooks(f"the hooks {whose}", held)
    yield ModeStack(torch._C._len_torch_function_stack, _leave_function_mode)
    yield ModeStack(_has_saving_hooks, torch._C._autograd._pop_saved_tensors_default_hooks)


def _working_directory() -> str | None:
    try:  # no context manager: all calls of plugins are looked at
        return os.getcwd()  # noqa: PTH109
    except OSError:  # it was removed
        return None


def _recursion_limit() -> int:
    """Return the limit; torch's compiler raises a lower one, which is nobody's doing."""
    limit = sys.getrecursionlimit()
    return USUAL_RECURSION if limit == COMPILERS_RECURSION and _COMPILER in sys.modules else limit


def _mask_of_new_files() -> int:
    # It can only be read by setting it: meanwhile another thread makes a file that is too private.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _limit(name: str) -> Flag:
    kind = getattr(resource, name)

    def write(limits: tuple[int, int]) -> None:
        with suppress(OSError, ValueError):  # nobody raises a hard limit again
            resource.setrlimit(kind, limits)

    return Flag(name, lambda: resource.getrlimit(kind), write)


DIRECTORY = Flag("the working directory", _working_directory, os.chdir)
USUAL_RECURSION = 1000
"""What Python begins with."""
COMPILERS_RECURSION = 2000
"""What torch's compiler raises a lower one to."""
_COMPILER = "torch._inductor.compile_fx"
RECURSION = Flag("the recursion limit", _recursion_limit, sys.setrecursionlimit)
EXCEPTHOOK = Flag(
    "sys.excepthook", lambda: sys.excepthook, lambda hook: setattr(sys, "excepthook", hook)
)
LOGGING = Flag(
    "logging.disable", lambda: logging.root.manager.disable, lambda level: logging.disable(level)
)
LIMITS = sorted(n for n in vars(resource) if n.startswith("RLIMIT_") and n != "RLIMIT_OFILE")
"""All but another name of one of them."""
PROCESS_FLAGS = (
    DIRECTORY,
    RECURSION,
    LOGGING,
    Flag(
        "the locale",
        lambda: locale.setlocale(locale.LC_ALL),
        lambda name: locale.setlocale(locale.LC_ALL, name),
    ),
    Flag("the umask", _mask_of_new_files, os.umask),
    *(_limit(name) for name in LIMITS),
    Flag(
        "the signal mask",
        lambda: tuple(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ()))),
        lambda blocked: signal.pthread_sigmask(signal.SIG_SETMASK, blocked),
    ),
    Flag("the function of sys.settrace", sys.gettrace, sys.settrace),
    Flag("the function of sys.setprofile", sys.getprofile, sys.setprofile),
    Flag("the function of threading.settrace", threading.gettrace, threading.settrace),
    Flag("the function of threading.setprofile", threading.getprofile, threading.setprofile),
    Flag(
        "the garbage collector", gc.isenabled, lambda is_on: gc.enable() if is_on else gc.disable()
    ),
)


def _has_alarm() -> bool:
    return signal.getitimer(signal.ITIMER_REAL)[0] > 0


def _of_signals() -> Iterator[Possession]:
    if not _has_alarm():  # or it may be over meanwhile
        yield Value("the alarm", _has_alarm, lambda _: signal.setitimer(signal.ITIMER_REAL, 0))
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        name = number.name if isinstance(number, signal.Signals) else f"signal {number}"
        read, write = partial(signal.getsignal, number), partial(signal.signal, number)
        if read() is not None:  # one that C code installed cannot be put back
            yield Value(f"the handler of {name}", read, write)


def _watching_imports() -> Callable[[], bool]:
    """Return whether modules were imported since; these may leave something behind.

    Many add filters of warnings or functions for the end of the process, some set variables.
    """
    before = len(sys.modules)
    return lambda: len(sys.modules) > before


class Environment:
    """The variables of the environment, which children of the process get."""

    of_pass = False

    def __init__(self, may_add: Callable[[], bool]) -> None:
        self._may_add, self._before = may_add, dict(os.environ)

    def _changed(self) -> list[str]:
        now, before = os.environ, self._before
        new = () if self._may_add() else [name for name in now if name not in before]
        return [*(name for name in before if before[name] != now.get(name)), *new]

    @property
    def label(self) -> str:
        """The names of those that changed; their values may be secrets."""
        return f"{', '.join(self._changed())} of os.environ"

    def is_changed(self) -> bool:
        """Whether one is new, gone or another."""
        return bool(self._changed())

    def put_back(self) -> bool:
        """Set them, or remove them."""
        for name in self._changed():
            if name in self._before:
                os.environ[name] = self._before[name]
            else:
                del os.environ[name]
        return True


class Filters:
    """The filters of warnings: one of them may make an error of a warning."""

    label = "warnings.filters"
    of_pass = False

    def __init__(self, is_excused: Callable[[], bool]) -> None:
        self._is_excused, self._before = is_excused, list(warnings.filters)

    def is_changed(self) -> bool:
        """Whether there are others, unless by an import."""
        return list(warnings.filters) != self._before and not self._is_excused()

    def put_back(self) -> bool:
        """Have those from before."""
        warnings.filters[:] = self._before  # type: ignore[index] # a list, though typed otherwise
        with warnings.catch_warnings():
            pass  # this makes Python look at them again
        return True


class Modules:
    """The modules that are imported: who imports one that is gone fails, or makes it twice."""

    of_pass = False

    def __init__(self) -> None:
        self._before = dict(sys.modules)

    def _gone(self) -> list[str]:
        return [name for name in self._before if name not in sys.modules]

    @property
    def label(self) -> str:
        """The names of those that are gone."""
        return f"{', '.join(self._gone()[:SHOWN])} of sys.modules"

    def is_changed(self) -> bool:
        """Whether one is gone; some modules put another in their own place."""
        return bool(self._gone())

    def put_back(self) -> bool:
        """Have those from before."""
        sys.modules.update({name: self._before[name] for name in self._gone()})
        return True


class AtExit:
    """The functions that are called as Python ends: they can be counted, and not be seen."""

    label = "the functions of atexit (it registered one)"
    of_pass = False

    def __init__(self, is_excused: Callable[[], bool]) -> None:
        self._is_excused, self._before = is_excused, atexit._ncallbacks()

    def is_changed(self) -> bool:
        """Whether there are more, unless by an import."""
        return atexit._ncallbacks() > self._before and not self._is_excused()

    def put_back(self) -> bool:
        """Only who registered it has it."""
        return False


class Threads:
    """The threads that run: a new one cannot be ended, only named."""

    of_pass = False

    def __init__(self) -> None:
        self._before = set(threading.enumerate())

    def _new(self) -> list[str]:
        return [t.name for t in threading.enumerate() if t not in self._before]

    @property
    def label(self) -> str:
        """The names of the new ones."""
        return f"the threads (it left {', '.join(self._new())} running)"

    def is_changed(self) -> bool:
        """Whether there is a new one."""
        return bool(self._new())

    def put_back(self) -> bool:
        """Nobody can end a thread."""
        return False


class ModeStack:
    """The modes of torch of a kind that are entered and not left."""

    label = "the modes of torch (one is not left)"
    of_pass = True

    def __init__(self, count: Callable[[], int], leave: Callable[[], None]) -> None:
        self._count, self._leave, self._before = count, leave, count()

    def is_changed(self) -> bool:
        """Whether there are more, or fewer."""
        return self._count() != self._before

    def put_back(self) -> bool:
        """Leave those that are new."""
        with suppress(Exception):  # a plugin's own mode may refuse
            while self._count() > self._before:
                self._leave()
        return not self.is_changed()


def _leave_dispatch_mode() -> None:
    mode = _get_current_dispatch_mode()
    if mode is not None:
        mode.__exit__(None, None, None)


def _leave_function_mode() -> None:
    mode = _get_current_function_mode()
    if mode is not None:
        mode.__exit__(None, None, None)


def _has_saving_hooks() -> int:
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


class Stream:
    """Standard output or standard error, which altcore and everybody else write to."""

    of_pass = False

    def __init__(self, name: str) -> None:
        self.label, self._stream = f"sys.{name} (it closed it)", getattr(sys, name)
        self._was_closed, self._again = self._is_closed(), _opened_again(self._stream)

    def _is_closed(self) -> bool:
        return bool(getattr(self._stream, "closed", False))

    def is_changed(self) -> bool:
        """Whether it is closed, and was not."""
        return self._is_closed() and not self._was_closed

    def put_back(self) -> bool:
        """Open the same object again, since loggers hold it."""
        self._again()
        return not self._is_closed()


def _opened_again(stream: Any) -> Callable[[], None]:
    """Return what opens a closed stream again; nothing for one that is no file's."""
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    if not (isinstance(stream, io.TextIOWrapper) and isinstance(raw, io.FileIO)) or raw.closed:
        return lambda: None
    kind, number = type(raw), raw.fileno()
    how = {k: getattr(stream, k) for k in ("encoding", "errors", "line_buffering", "write_through")}

    def open_again() -> None:
        with suppress(OSError):  # its descriptor was closed as well
            stream.__init__(io.BufferedWriter(kind(number, "w", closefd=False)), **how)  # type: ignore[misc]

    return open_again
