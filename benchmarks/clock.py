"""How long calls take on a CPU or on a GPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Clock:
    """Measures calls on a device."""

    device: torch.device

    @property
    def is_gpu(self) -> bool:
        """Whether calls only start the work, which goes on after them."""
        return self.device.type == "cuda"

    def wait(self) -> None:
        """Wait until the device has done what it was given."""
        if self.is_gpu:
            torch.cuda.synchronize(self.device)

    def seconds(self, call: Callable[[], object]) -> float:
        """How long a call takes, until the device is done; freeing its result does not count."""
        self.wait()
        start = time.perf_counter()
        result = call()
        self.wait()
        taken = time.perf_counter() - start
        del result
        return taken

    def typical(self, times: Sequence[float]) -> float:
        """The fastest on a CPU, where other load slows calls down; the median on a GPU."""
        return statistics.median(times) if self.is_gpu else min(times)

    def titled(self, title: str) -> str:
        """A table's title, which names the GPU."""
        return f"{title}, {torch.cuda.get_device_name(self.device)}" if self.is_gpu else title
