"""Where a run happened: versions, plugins, device and git state."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from altcore.registry import entries

if TYPE_CHECKING:
    import torch


def environment(device: torch.device, plugins: Mapping[str, str]) -> dict[str, Any]:
    """Return versions, plugin distributions, device and git state."""
    import torch

    libraries = ("torch", "pluggy", "click", "attrs", "cattrs", "structlog", "PyYAML")
    return {
        "altcore": _version("altcore"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {name: _version(name) for name in libraries},
        "distributions": sorted({e.origin for e in entries()}),
        "plugins": dict(plugins),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "command": sys.argv,
        "git": _git(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


@cache  # what was imported stays what it is
def _version(name: str) -> str:
    return version(name)


def _git() -> dict[str, Any] | None:
    def ask(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    commit = ask("rev-parse", "HEAD")
    return {"commit": commit, "dirty": bool(ask("status", "--porcelain"))} if commit else None
