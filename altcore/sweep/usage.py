"""What an attempt uses: time of the CPU, memory, and a GPU.

The kernel keeps the most memory that a process ever had. Linux forgets it if asked, so that each
attempt has a maximum of its own, though its worker runs many; elsewhere it is that of the worker.
"""

from __future__ import annotations

import resource
import sys
import time
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any

from attrs import define, field

from altcore.sweep.records import is_number

FORGET, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
PEAK = "5"
"""Written to `FORGET`: begin the maximum anew (proc(5))."""
ATTEMPT, WORKER = "attempt", "worker so far"
"""Of what the most memory is told."""
MEMORY_OF = "peak_memory_of"
"""The key that tells it."""


def check_used(_: Any, attribute: Any, used: Any) -> None:
    """Raise `TypeError` unless a field is what `Usage.to_plain` returns, as a file has it."""
    for key, value in used.items():
        if not (value in (ATTEMPT, WORKER) if key == MEMORY_OF else is_number(value)):
            raise TypeError(f"{attribute.name}: {key} cannot be {value!r}")


def _forgotten() -> bool:
    with suppress(OSError):
        FORGET.write_text(PEAK)
        return "VmHWM:" in STATUS.read_text()
    return False


def _cuda() -> Any:
    """Return torch's module for GPUs, if this process uses one by now."""
    cuda = sys.modules.get("torch.cuda")
    # A module that another thread imports at this moment may lack it.
    is_used = getattr(cuda, "is_initialized", bool)
    return cuda if is_used() else None


@define
class Usage:
    """What this process uses from now on."""

    _cpu: float = field(init=False, factory=time.process_time)
    _is_own: bool = field(init=False, factory=_forgotten)
    """Whether the most memory is of this use alone."""
    _busy: list[int] = field(init=False, factory=list)
    """Percentages of a moment in which the GPU computed."""
    _is_unknown: bool = field(init=False, default=False)

    def __attrs_post_init__(self) -> None:
        if (cuda := _cuda()) is not None:
            cuda.reset_peak_memory_stats()

    def sample(self) -> None:
        """Note how busy the GPU is, if NVIDIA's library can say."""
        if self._is_unknown or (cuda := _cuda()) is None:
            return
        try:
            self._busy.append(cuda.utilization())
        # It is not installed, or does not know the device, or has no right to ask.
        except Exception:
            self._is_unknown = True

    @property
    def memory(self) -> dict[str, float]:
        """The most bytes, of the machine and of a GPU."""
        found: dict[str, float] = {"peak_memory_bytes": self._peak()}
        if (cuda := _cuda()) is not None:
            found["peak_gpu_memory_bytes"] = cuda.max_memory_allocated()
        return found

    def to_plain(self) -> dict[str, Any]:
        """Return all of it, as the record of an attempt has it."""
        busy = {"gpu_utilization": round(fmean(self._busy), 1)} if self._busy else {}
        return {
            "cpu_seconds": round(time.process_time() - self._cpu, 3),
            **self.memory,
            MEMORY_OF: ATTEMPT if self._is_own else WORKER,
            **busy,
        }

    def _peak(self) -> int:
        if self._is_own:
            lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
            return int(lines["VmHWM"].split()[0]) * 1024
        # Linux tells kilobytes, macOS bytes.
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
