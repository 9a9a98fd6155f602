"""What decides the bits of an operation beside its operands: versions, device, flags of torch."""

from __future__ import annotations

from contextlib import suppress

import torch

from altcore.engine.torch_flags import FLAGS
from altcore.runs import platform_of

NO_ARITHMETIC = {"torch's number of threads", "torch's print options"}
"""Flags that have a key of their own, or change no number."""


def arithmetic() -> dict[str, str]:
    """Return the CPU's instructions and the flags of torch that decide numbers, by name."""
    found = {"instructions of the CPU": torch.backends.cpu.get_cpu_capability()}
    for flag in FLAGS:
        if flag.label not in NO_ARITHMETIC:
            with suppress(RuntimeError):  # torch refuses to read some that a user set in two ways
                found[flag.label] = str(flag.read())
    return found


def platform_on(device: torch.device) -> dict[str, str | int]:
    """Return what may decide the bits of a run on ``device`` beside all that is its own."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return platform_of({"threads": torch.get_num_threads(), "device": name, **arithmetic()})
