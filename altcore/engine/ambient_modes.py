"""torch's modes as a process has them that entered none, whatever a caller is within."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

AUTOCAST = {"cpu": torch.bfloat16, "cuda": torch.float16}
"""The types of autocast that torch begins with."""


@contextmanager
def plain_modes() -> Iterator[None]:
    """Let gradients be made, without inference mode and without an autocast of the caller's."""
    with torch.inference_mode(False), torch.enable_grad(), _no_autocast():
        yield


def run_autocast(compute: str, device: torch.device) -> torch.autocast:
    """Return the autocast of a run that computes so: bfloat16, or none."""
    return torch.autocast(device.type, torch.bfloat16, enabled=compute == "bfloat16")


@contextmanager
def only_run_autocast(compute: str, device: torch.device) -> Iterator[None]:
    """Be within the autocast of a run, without one of the caller's."""
    with _no_autocast(), run_autocast(compute, device):
        yield


@contextmanager
def _no_autocast() -> Iterator[None]:
    """Be within no autocast.

    One that is only disabled would still be the outermost one, at whose end torch clears its cache
    of cast weights: autocasts within it would take the weights of the first step at all others.
    """
    before = {kind: _autocast(kind) for kind in AUTOCAST}
    depth = torch.autocast_increment_nesting() - 1
    for _ in range(depth + 1):
        torch.autocast_decrement_nesting()
    torch.clear_autocast_cache()
    for kind, dtype in AUTOCAST.items():
        _set_autocast(kind, is_on=False, dtype=dtype)
    try:
        yield
    finally:
        torch.clear_autocast_cache()
        for _ in range(depth):
            torch.autocast_increment_nesting()
        for kind, (is_on, dtype) in before.items():
            _set_autocast(kind, is_on=is_on, dtype=dtype)


def _autocast(kind: str) -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)


def _set_autocast(kind: str, *, is_on: bool, dtype: torch.dtype) -> None:
    torch.set_autocast_enabled(kind, is_on)
    torch.set_autocast_dtype(kind, dtype)
