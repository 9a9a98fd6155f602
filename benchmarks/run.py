"""``make bench``: every benchmark, one after another; ratios within one run, no absolute claim.

    python benchmarks/run.py [--quick] [--markdown docs/benchmarks.md] [--device cuda]

With ``--markdown`` the tables replace what that file has between its two markers. With ``--device
cuda`` those benchmarks run that have something to do on a GPU.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import describe
from tables import Table, options, replace

HERE = Path(__file__).parent
BENCHMARKS = {
    "startup.py": False,
    "engine.py": True,
    "diagnostics.py": True,
    "monitors.py": False,
    "small.py": True,
    "quantize.py": True,
    "sweep.py": False,
    "training.py": True,
}
"""Each benchmark, and whether it takes ``--device``."""


def run(name: str, given: argparse.Namespace, scratch: Path) -> str:
    """Run one in a process of its own, so that none warms up another; returns its tables."""
    made = scratch / name
    quick = ["--quick"] if given.quick else []
    device = ["--device", given.device] if BENCHMARKS[name] else []
    command = [sys.executable, str(HERE / name), *quick, *device, "--markdown", str(made)]
    print(f"\n== {name}", flush=True)
    subprocess.run(command, check=True)
    return f"## {name}\n\n{made.read_text(encoding='utf-8')}"


def main() -> None:
    """Run them all."""
    given = options(__doc__, runs_on_gpu=True).parse_args()
    on_gpu = given.device == "cuda"
    names = [name for name, takes_device in BENCHMARKS.items() if takes_device or not on_gpu]
    quick = ["Taken with --quick: these figures show only that the benchmarks run."]
    head = ("", "this machine")
    facts = describe(given.device)
    machine = Table("The machine", head, facts, quick if given.quick and not on_gpu else [])
    print(machine.text())
    with tempfile.TemporaryDirectory() as scratch:
        parts = [machine.markdown() + "\n"]
        parts += [run(name, given, Path(scratch)) for name in names]
    if given.markdown is not None:
        replace(given.markdown, "\n".join(parts))


if __name__ == "__main__":
    main()
