"""Where a run happened: versions, device and git state."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from altcore.registry import entries

if TYPE_CHECKING:
    import torch


def environment(device: torch.device) -> dict[str, Any]:
    """Return versions, distributions, device and git state."""
    import torch

    libraries = ("torch", "pluggy", "click", "attrs", "cattrs", "structlog", "PyYAML")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {name: _version(name) for name in libraries},
        "distributions": sorted({e.origin for e in entries()}),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "command": sys.argv,
        "git": _git(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


@cache  # what was imported stays what it is
def _version(name: str) -> str:
    return version(name)


@cache
def _processor() -> str:
    """Return the processor's name, as far as the system tells one."""
    try:
        told = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in told.splitlines() if "model name" in line)
    return next(names, platform.processor())


def _git() -> dict[str, Any] | None:
    command = ["git", "status", "--porcelain=v2", "--branch", "--no-ahead-behind"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    head, *lines = done.stdout.splitlines()
    commit = head.removeprefix("# branch.oid ")
    dirty = any(not line.startswith("# ") for line in lines)
    return {"commit": commit, "dirty": dirty} if commit != "(initial)" else None
