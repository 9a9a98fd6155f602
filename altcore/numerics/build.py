"""The compiled kernels, loaded on first use.

`altcore.numerics.compiler` compiles them, `altcore.numerics.kernel_cache` keeps them. Where either
is not possible the torch path does all the work.
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from altcore.numerics.compiler import find_compiler

SWITCH = "ALTCORE_KERNELS"  # "off" forces the torch path

# What os.environ wraps, where Python has it: asking os.environ itself for a name that is not
# there takes a tenth of the time of rounding a small tensor.
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
    """The compiled kernels; None, with one warning, where they cannot be had."""
    with _LOCK:  # the first thread loads them, those that come meanwhile wait
        return _library()


@functools.cache
def _library() -> ctypes.CDLL | None:
    try:
        return _first_that_loads()
    # ImportError: an operating system without file locks.
    except (OSError, subprocess.SubprocessError, RuntimeError, ImportError) as error:
        warnings.warn(
            f"altcore's compiled CPU kernels are not available ({error}): "
            "rounding uses torch operations, with the same results but slower",
            RuntimeWarning,
            stacklevel=3,
        )
        return None


def _first_that_loads() -> ctypes.CDLL:
    """The library, from the first folder that it can be kept in and executed from."""
    from altcore.numerics import kernel_cache

    compiler = find_compiler()
    name, problems = f"kernels-{compiler.digest}", []
    for folder in kernel_cache.folders():
        try:
            return _load(kernel_cache.fetch(folder, name, compiler.compile))
        except OSError as error:
            problems.append(str(error))
    raise RuntimeError("; ".join(problems))


def _load(path: Path) -> ctypes.CDLL:
    handle = ctypes.CDLL(str(path))
    pointer, whole = ctypes.c_void_p, ctypes.c_int64
    takes: dict[str, list[Any]] = {
        "round": [pointer, pointer],
        "round_blocks": [pointer],
        "amax": [pointer, whole, ctypes.c_int32, ctypes.c_int32, pointer],
        "block_amax": [pointer],
        "scale_output": [pointer],
        "follow_flips": [pointer],
        "position": [pointer],
        "inner_products": [pointer, pointer],
        "moments": [pointer, pointer],
        "count_small": [pointer, pointer],
    }
    for name, arguments in takes.items():
        entry = getattr(handle, f"altcore_{name}")
        entry.argtypes, entry.restype = arguments, None
    handle.altcore_block_amax.restype = ctypes.c_float
    for name, mirror in _mirrors().items():
        size = getattr(handle, f"altcore_{name}_size")
        size.restype = whole
        if size() != ctypes.sizeof(mirror):
            sizes = f"{size()} bytes in C and {ctypes.sizeof(mirror)} in Python"
            raise RuntimeError(f"struct {name} has {sizes}")
    return handle


def _mirrors() -> dict[str, type[ctypes.Structure]]:
    """The Python side of each struct that the kernels are handed."""
    # Here, since these modules ask this one for the library.
    from altcore.numerics.flips import _Flips
    from altcore.numerics.native_blocks import _BlockJob
    from altcore.numerics.native_formats import Job
    from altcore.numerics.outputs import _Output
    from altcore.numerics.positions import _Position
    from altcore.numerics.tallies import _Tally

    return {
        "job": Job,
        "block_job": _BlockJob,
        "output": _Output,
        "flips": _Flips,
        "position": _Position,
        "tally": _Tally,
    }
