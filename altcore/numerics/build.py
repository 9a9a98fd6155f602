"""Compiling the C kernels on first use, and loading them.

The library is kept in the user's cache folder, under a name that is a hash of everything it
depends on, and appears there in one rename, so that processes starting together do no harm to
one another. Without a compiler the torch path does all the work.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

SOURCE = Path(__file__).with_name("kernels.c")
_INCLUDED = (
    *("rounding.h", "tables.h", "adding.h", "blocks.h", "tiles.h", "outputs.h", "flips.h"),
    *("positions.h", "tallies.h"),
)
SWITCH = "ALTCORE_KERNELS"  # "off" forces the torch path
_FLAGS = (
    *("-O3", "-std=c11", "-fPIC", "-fopenmp-simd"),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
)
_NATIVE = ("-march=native", "-mcpu=native", "")  # what a compiler calls this machine's CPU
_TIMEOUT = 120  # seconds


# What os.environ wraps, where Python has it: asking os.environ itself for a name that is not
# there takes a tenth of the time of rounding a small tensor.
_ENVIRONMENT: Mapping[Any, Any] = getattr(os.environ, "_data", os.environ)
_NAME: Any = getattr(os.environ, "encodekey", str)(SWITCH)


def switched_on() -> bool:
    """Whether the environment allows the compiled kernels."""
    value = _ENVIRONMENT.get(_NAME)
    return value is None or os.fsdecode(value).lower() not in ("off", "0")


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None, with one warning, where they cannot be had."""
    try:
        return _load(_built())
    except (OSError, subprocess.SubprocessError, RuntimeError) as error:
        warnings.warn(
            f"altcore's compiled CPU kernels are not available ({error}): "
            "rounding uses torch operations, with the same results but slower",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


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
    for struct in ("job", "block_job", "output", "flips", "position", "tally"):
        getattr(handle, f"altcore_{struct}_size").restype = whole
    return handle


def _built() -> Path:
    """The library's file, compiled now unless an earlier process did."""
    compiler = _compiler()
    runtime = _thread_runtime()
    sources = [SOURCE, *(SOURCE.with_name(name) for name in _INCLUDED)]
    parts = [*(p.read_text() for p in sources), *_FLAGS, *_NATIVE, compiler, str(runtime), _cpu()]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]
    folder = _cache_folder()
    path = folder / f"kernels-{digest}.so"
    if path.exists():
        return path
    if not compiler:
        raise RuntimeError("no C compiler found: cc, gcc or clang")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = _compile(compiler, runtime, Path(scratch))
        made.replace(path)
    return path


def _compile(compiler: str, runtime: Path | None, scratch: Path) -> Path:
    """Compile with the most this compiler can do: threads, then the CPU's own instructions."""
    made, message = scratch / "kernels.so", ""
    for threads in (runtime, None) if runtime else (None,):
        for cpu in _NATIVE:
            flags = [*_FLAGS, *([cpu] if cpu else []), *(["-fopenmp"] if threads else [])]
            steps = [
                [compiler, *flags, "-c", str(SOURCE), "-o", str(scratch / "kernels.o")],
                # Linked by name to the thread pool that torch has loaded, not to the system's:
                # two pools would compete for the same cores.
                [compiler, "-shared", "-o", str(made), str(scratch / "kernels.o")]
                + (["-Wl,-z,defs", str(threads)] if threads else []),
            ]
            message = _first_failure(steps)
            if not message:
                return made
    raise RuntimeError(f"{compiler} failed: {message}")


def _first_failure(steps: list[list[str]]) -> str:
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            return next((line for line in lines if "error" in line), lines[0])
    return ""


def _compiler() -> str:
    for name in ("cc", "gcc", "clang"):
        found = shutil.which(name)
        if found:
            return found
    return ""


def _thread_runtime() -> Path | None:
    """The OpenMP library that torch has loaded into this process, or None."""
    if not torch.backends.openmp.is_available() or not sys.platform.startswith("linux"):
        return None
    lines = Path("/proc/self/maps").read_text().splitlines()
    loaded = {Path(line[line.index("/") :]) for line in lines if "/" in line}
    found = sorted(p for p in loaded if p.name.startswith(("libgomp", "libiomp", "libomp")))
    of_torch = [p for p in found if "torch" in str(p)]
    return next(iter(of_torch or found), None)


def _cpu() -> str:
    """What -march=native depends on: the name and the features of this machine's CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def _cache_folder() -> Path:
    """The user's cache folder; where it cannot be written, a private temporary one."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(base) / "altcore"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="altcore-"))
    return folder if os.access(folder, os.W_OK) else Path(tempfile.mkdtemp(prefix="altcore-"))
