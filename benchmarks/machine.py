"""What figures depend on: the machine and the versions, without anybody's names or paths."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from altcore.numerics.kernels.build import library

FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "sve", "bf16")
"""What kernels and matrix products are compiled or chosen for."""


def cores() -> int:
    """How many this process may use."""
    has_mask = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if has_mask else os.cpu_count() or 1


def _cpuinfo(*keys: str) -> str:
    """The first line of that name in what Linux says of the CPU; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((x.partition(":")[2].strip() for x in lines if x.startswith(keys)), "")


def _cache() -> str:
    """The size of the last-level cache."""
    levels = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    sizes = [text for p in levels if (text := p.read_text().strip()).endswith("K")]
    largest = max((int(s[:-1]) for s in sizes), default=0)
    return f"{largest // 1024} MiB" if largest else "unknown"


def describe(device: str = "cpu") -> list[tuple[str, str]]:
    """What the head of docs/benchmarks.md says."""
    gpu = [("GPU", torch.cuda.get_device_name(device))] if device == "cuda" else []
    has = set(_cpuinfo("flags", "Features").split())
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    return [
        *gpu,
        ("CPU", _cpuinfo("model name") or platform.processor() or platform.machine()),
        ("cores", str(cores())),
        ("instructions that matter", ", ".join(f for f in FLAGS if f in has) or "none known"),
        ("last-level cache", _cache()),
        ("torch, Python", f"{torch.__version__}, {platform.python_version()}"),
        ("altcore's kernels", "compiled" if library() is not None else "none: torch operations"),
        ("load average when it began", load),
    ]
