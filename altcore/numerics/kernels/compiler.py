"""Compiling the C kernels with the machine's own compiler, for its own CPU."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from attrs import frozen

SOURCE = Path(__file__).with_name("kernels.c")
_FLAGS = (
    *("-O3", "-std=c11", "-fPIC", "-fopenmp-simd"),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
)
_NATIVE = ("-march=native", "-mcpu=native", "")  # compilers' names for this machine's CPU
_TIMEOUT = 120  # seconds


@frozen
class Compiler:
    """A C compiler, and the OpenMP library that its kernels share with torch."""

    path: str  # empty if there is none
    runtime: Path | None
    options: tuple[str, ...] = ()
    """What follows the path in CC, as in ``ccache gcc`` or ``gcc -m64``."""

    @property
    def digest(self) -> str:
        """A hash of everything that a compiled library depends on."""
        sources = [SOURCE, *sorted(SOURCE.parent.glob("*.h"))]
        texts = [p.read_text() for p in sources]
        parts = [*texts, *_FLAGS, *_NATIVE, self.path, *self.options, str(self.runtime), _cpu()]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]

    def compile(self, scratch: Path) -> Path:
        """Compile with the most that this compiler can do: threads, then the CPU's instructions.

        Returns the library's file, in the folder ``scratch``. Raises RuntimeError without a
        compiler, and if it fails; subprocess.TimeoutExpired if it does not end.
        """
        if not self.path:
            raise RuntimeError("no C compiler found: cc, gcc or clang")
        command = [self.path, *self.options]
        made, message = scratch / "kernels.so", ""
        for threads in (self.runtime, None) if self.runtime else (None,):
            for cpu in _NATIVE:
                flags = [*_FLAGS, *([cpu] if cpu else []), *(["-fopenmp"] if threads else [])]
                steps = [
                    [*command, *flags, "-c", str(SOURCE), "-o", str(scratch / "kernels.o")],
                    # Linked by name to the thread pool that torch has loaded, not to the
                    # system's: two pools would compete for the same cores.
                    [*command, "-shared", "-o", str(made), str(scratch / "kernels.o")]
                    + (["-Wl,-z,defs", str(threads)] if threads else []),
                ]
                message = _first_failure(steps)
                if not message:
                    return made
        raise RuntimeError(f"{self.path} failed: {message}")


def find_compiler() -> Compiler:
    """Return the compiler that CC names, or this machine's; without a path if there is none.

    Raises RuntimeError if CC names one that is not there.
    """
    if given := os.environ.get("CC", "").strip():
        name, *options = shlex.split(given)
        if (path := shutil.which(name)) is None:
            raise RuntimeError(f"CC is {given!r}, and there is no {name}")
        return Compiler(path, _thread_runtime(), tuple(options))
    found = (shutil.which(name) for name in ("cc", "gcc", "clang"))
    return Compiler(next(filter(None, found), ""), _thread_runtime())


def _first_failure(steps: list[list[str]]) -> str:
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            return next((line for line in lines if "error" in line), lines[0])
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
