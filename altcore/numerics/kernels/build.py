"""The compiled kernels, loaded on first use.

`compiler` compiles them and `cache` keeps them. If either fails, torch operations do all the work.
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from altcore.environment import KERNELS, unknown_variables
from altcore.log import warn
from altcore.numerics.kernels import cache
from altcore.numerics.kernels.compiler import find_compiler
from altcore.numerics.kernels.structs import FUNCTIONS, mismatch

SWITCH = KERNELS  # "off" forces the torch path

# The dictionary that os.environ wraps, if Python has it: asking os.environ itself for a missing
# name takes a tenth of the time of rounding a small tensor.
_ENVIRONMENT: Mapping[Any, Any] = getattr(os.environ, "_data", os.environ)
_NAME: Any = getattr(os.environ, "encodekey", str)(SWITCH)
_LOCK = threading.Lock()


def _renew_lock() -> None:
    """In a forked child nobody would release what another thread held."""
    global _LOCK
    _LOCK = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def switched_on() -> bool:
    """Whether the environment allows the compiled kernels."""
    value = _ENVIRONMENT.get(_NAME)
    return value is None or os.fsdecode(value).lower() not in ("off", "0")


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled kernels; None, with one warning, if they cannot be built."""
    for message in unknown_variables():
        warn(message, stacklevel=2)
    with _LOCK:  # the first thread loads them, and others wait
        return _library()


@functools.cache
def kernels() -> ctypes.CDLL:
    """Return the compiled kernels, which are there: `tensors.reads` has found out."""
    found = library()
    assert found is not None
    return found


@functools.cache
def _library() -> ctypes.CDLL | None:
    try:
        return _first_that_loads()
    # ImportError: an operating system without file locks.
    except (OSError, subprocess.SubprocessError, RuntimeError, ImportError) as error:
        warn(
            f"altcore's compiled CPU kernels are not available ({error}): "
            "rounding uses torch operations, with the same results but slower",
            stacklevel=3,
        )
        return None


def _first_that_loads() -> ctypes.CDLL:
    """The library, from the first folder that it can be kept in and executed from."""
    compiler = find_compiler()
    name, problems = f"kernels-{compiler.digest}", []
    for folder in cache.folders():
        try:
            return _load(cache.fetch(folder, name, compiler.compile))
        except OSError as error:
            problems.append(str(error))
    raise RuntimeError("; ".join(problems))


def _load(path: Path) -> ctypes.CDLL:
    handle = ctypes.CDLL(str(path))
    try:
        if problem := mismatch(handle):
            raise RuntimeError(problem)
        for name, (arguments, result) in FUNCTIONS.items():
            function = getattr(handle, f"altcore_{name}")
            function.argtypes, function.restype = arguments, result
    except AttributeError as error:  # ctypes' for a function that is not there
        raise OSError(f"{path} is not altcore's library ({error})") from error
    return handle
