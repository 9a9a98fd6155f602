"""Flags of the process that decide what is computed: compared around each call of others' code.

All calls are looked at, so this reads in a few microseconds. `torch_flags` has the rest, for
the calls that `altcore.engine.observers` looks at.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, ClassVar

import torch
from torch.utils import _device

from altcore.engine.process_possessions import (
    DIRECTORY,
    EXCEPTHOOK,
    LOGGING,
    RECURSION,
    SHOWN,
)
from altcore.engine.torch_flags import Flag
from altcore.hook_clock import timing
from altcore.log import log
from altcore.signals import handlers, put_back_handlers

_C = torch._C
_ONE, _SUBNORMAL = 1.0, 5e-324


def _readable(read: Callable[[], Any]) -> Callable[[], Any]:
    """Return a function that gives None where torch refuses: for what is set in two ways."""

    def read_or_none() -> Any:
        try:
            return read()
        except RuntimeError:
            return None

    return read_or_none


def _set_deterministic(is_on: bool) -> None:
    is_warning = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(is_on, warn_only=is_warning)


def _set_filters(filters: tuple[Any, ...]) -> None:
    warnings.filters[:] = filters  # type: ignore[index] # a list, though typed otherwise
    with warnings.catch_warnings():
        pass  # this makes Python look at them again


class _Last:
    """Copies that are made again only when they are no more what they are of."""

    environment: ClassVar[dict[Any, Any]] = {}
    modules: ClassVar[dict[str, Any]] = {}
    known: ClassVar[tuple[int, str]] = (0, "")


def _environment() -> dict[Any, Any]:
    # As bytes: to decode them takes ten times as long.
    held = getattr(os.environ, "_data", os.environ)
    if held != _Last.environment:
        _Last.environment = held.copy()
    return _Last.environment


def _set_environment(data: dict[Any, Any]) -> None:
    before = {os.fsdecode(k): os.fsdecode(v) for k, v in data.items()}
    for name in os.environ.keys() - before:
        del os.environ[name]
    os.environ.update(before)


def _modules() -> dict[str, Any]:
    # There are thousands, so they are known by their number and the newest one.
    known = len(sys.modules), next(reversed(sys.modules))
    if known != _Last.known:
        _Last.modules, _Last.known = sys.modules.copy(), known
    return _Last.modules


def _set_modules(modules: dict[str, Any]) -> None:
    sys.modules.update({k: v for k, v in modules.items() if k not in sys.modules})


FILTERS, ENVIRONMENT, MODULES = "warnings.filters", "os.environ", "sys.modules"
QUICK = (
    Flag("torch's number of threads", torch.get_num_threads, torch.set_num_threads),
    Flag(
        "torch's deterministic algorithms",
        torch.are_deterministic_algorithms_enabled,
        _set_deterministic,
    ),
    Flag("torch's default device", lambda: _device.CURRENT_DEVICE, torch.set_default_device),
    # That of CUDA's products, too.
    Flag(
        "torch's precision of float32 products",
        _readable(_C._get_float32_matmul_precision),
        torch.set_float32_matmul_precision,
    ),
    Flag(
        "torch.backends.cudnn.allow_tf32",
        _readable(_C._get_cudnn_allow_tf32),
        _C._set_cudnn_allow_tf32,
    ),
    Flag(
        "torch.backends.cudnn.deterministic",
        _C._get_cudnn_deterministic,
        _C._set_cudnn_deterministic,
    ),
    Flag("torch.backends.cudnn.benchmark", _C._get_cudnn_benchmark, _C._set_cudnn_benchmark),
    # Of the processor, for all that runs in this thread.
    Flag(
        "torch's flushing of denormals",
        lambda: _SUBNORMAL * _ONE == 0,
        torch.set_flush_denormal,
    ),
    Flag(FILTERS, lambda: tuple(warnings.filters), _set_filters),
    Flag(ENVIRONMENT, _environment, _set_environment),
    Flag(MODULES, _modules, _set_modules),
    DIRECTORY,
    RECURSION,
    LOGGING,
    EXCEPTHOOK,
)
_READS, _LABELS = [flag.read for flag in QUICK], [flag.label for flag in QUICK]
OWN_THREADS = 2
"""The main one, and that of the clock."""


class FlagWatch:
    """The flags as they are now, to be compared with later."""

    __slots__ = ("_values",)

    def __init__(self) -> None:
        self._values = [read() for read in _READS]

    def changed(self) -> list[str]:
        """Return the labels of those that are not as they were, and take them as they are."""
        return [label for label, _, _ in self._differing()]

    def put_back(self, *, is_reporter: bool = False) -> list[str]:
        """Set those that are not as they were; returns their labels.

        A reporter may add variables to the environment, and have a hook for exceptions.
        """
        found = self._differing(is_reporter=is_reporter)
        for _, flag, value in found:
            with suppress(RuntimeError, TypeError, OSError):  # torch cannot say what it was
                flag.write(value)
        if found:
            self._values = [read() for read in _READS]
        return [label for label, _, _ in found]

    def _differing(self, *, is_reporter: bool = False) -> list[tuple[str, Flag, Any]]:
        """Return what is not as it was, each with what it was; it is now as it is."""
        now = [read() for read in _READS]
        if now == self._values:
            return []
        before, self._values = dict(zip(_LABELS, self._values, strict=True)), now
        is_now = dict(zip(_LABELS, now, strict=True))
        differing = {label for label in _LABELS if before[label] != is_now[label]}
        if before[MODULES].keys() <= is_now[MODULES].keys():
            differing.discard(MODULES)
        # Modules add some as they are imported, and other threads have some for a moment.
        is_imported = len(is_now[MODULES]) > len(before[MODULES])
        if is_imported or threading.active_count() > OWN_THREADS:
            differing -= {FILTERS, ENVIRONMENT}
        if is_reporter:
            only_new = before[ENVIRONMENT].items() <= is_now[ENVIRONMENT].items()
            differing -= {EXCEPTHOOK.label, *([ENVIRONMENT] if only_new else [])}
        changed = [(f, before[f.label], is_now[f.label]) for f in QUICK if f.label in differing]
        return [(_with_names(flag.label, was, is_), flag, was) for flag, was, is_ in changed]


def _with_names(label: str, before: Any, now: Any) -> str:
    """Return the label, of mappings with the names that changed; values may be secrets."""
    if label not in (ENVIRONMENT, MODULES):
        return label
    new = now.keys() - before.keys() if label == ENVIRONMENT else ()
    names = [*(k for k in before if before[k] != now.get(k)), *new]
    gone = [k for k in names if k not in now] if label == MODULES else names
    return f"{', '.join(map(os.fsdecode, gone[:SHOWN]))} of {label}"


@contextmanager
def watched(who: str, doing: str, *, is_observer: bool = False) -> Iterator[None]:
    """Name others' code that takes too long, or changes flags.

    What is an observer's may not, and they are put back. So are, whoever it is, the handlers of the
    signals that ask a run to leave: the run would be deaf.
    """
    with timing(who, doing):
        flags, own = FlagWatch(), handlers()
        try:
            yield
        finally:
            if names := put_back_handlers(own):
                label = f"the handler of {', '.join(names)}"
                tell_changed(who, doing, [label], ": it is put back")
            if is_observer:
                tell_changed(who, doing, flags.put_back(), ": it is put back")
            else:
                tell_changed(who, doing, flags.changed())


def tell_changed(who: object, doing: str, changed: list[str], and_then: str = "") -> None:
    """Warn of flags that somebody changed who may change numbers, or who is put right."""
    if changed:
        log.warning(f"{who} changed {', '.join(changed)} in {doing}{and_then}")
