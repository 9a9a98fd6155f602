"""Flags of the process that decide what is computed: compared around each call of others' code.

All calls are looked at, so this reads in about a microsecond. `torch_flags` has the rest, for
the calls that `altcore.engine.observers` looks at.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch.utils import _device

from altcore.engine.torch_flags import Flag
from altcore.hook_clock import timing
from altcore.log import log

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


FILTERS = "warnings.filters"
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
)
_READS = [flag.read for flag in QUICK]
OWN_THREADS = 2
"""The main one, and that of the clock."""


class FlagWatch:
    """The flags as they are now, to be compared with later."""

    __slots__ = ("_modules", "_values")

    def __init__(self) -> None:
        self._values, self._modules = [read() for read in _READS], len(sys.modules)

    def changed(self) -> list[str]:
        """Return the labels of those that are not as they were, and take them as they are."""
        now = [read() for read in _READS]
        if now == self._values:
            return []
        before, self._values = self._values, now
        return [flag.label for flag, _ in self._differing(before, now)]

    def put_back(self) -> list[str]:
        """Set those that are not as they were; returns their labels."""
        now = [read() for read in _READS]
        if now == self._values:
            return []
        found = self._differing(self._values, now)
        for flag, value in found:
            with suppress(RuntimeError, TypeError):  # torch cannot say what it was
                flag.write(value)
        return [flag.label for flag, _ in found]

    def _differing(self, before: list[Any], now: list[Any]) -> list[tuple[Flag, Any]]:
        differing = [(f, b) for f, b, n in zip(QUICK, before, now, strict=True) if b != n]
        # Modules add filters as they are imported, and other threads have some for a moment.
        if len(sys.modules) > self._modules or threading.active_count() > OWN_THREADS:
            differing = [(flag, value) for flag, value in differing if flag.label != FILTERS]
        return differing


@contextmanager
def watched(who: str, doing: str, *, is_observer: bool = False) -> Iterator[None]:
    """Name others' code that takes too long, or changes flags.

    What is an observer's may not, and they are put back.
    """
    with timing(who, doing):
        flags = FlagWatch()
        try:
            yield
        finally:
            if is_observer:
                tell_changed(who, doing, flags.put_back(), ": it is put back")
            else:
                tell_changed(who, doing, flags.changed())


def tell_changed(who: object, doing: str, changed: list[str], and_then: str = "") -> None:
    """Warn of flags that somebody changed who may change numbers, or who is put right."""
    if changed:
        log.warning(f"{who} changed {', '.join(changed)} in {doing}{and_then}")
