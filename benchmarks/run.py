"""``make bench``: every benchmark, one after another; ratios within one run, no absolute claim.

    python benchmarks/run.py [--quick] [--markdown docs/benchmarks.md]

With ``--markdown`` the tables replace what that file has between its two markers.
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
BENCHMARKS = (
    "startup.py",
    "engine.py",
    "diagnostics.py",
    "monitors.py",
    "small.py",
    "quantize.py",
    "sweep.py",
    "training.py",
)


def run(name: str, given: argparse.Namespace, scratch: Path) -> str:
    """Run one in a process of its own, so that none warms up another; returns its tables."""
    made = scratch / name
    quick = ["--quick"] if given.quick else []
    command = [sys.executable, str(HERE / name), *quick, "--markdown", str(made)]
    print(f"\n== {name}", flush=True)
    subprocess.run(command, check=True)
    return f"## {name}\n\n{made.read_text(encoding='utf-8')}"


def main() -> None:
    """Run them all."""
    given = options(__doc__).parse_args()
    quick = ["Taken with --quick: these figures show only that the benchmarks run."]
    head = ("", "this machine")
    machine = Table("The machine", head, describe(), quick if given.quick else [])
    print(machine.text())
    with tempfile.TemporaryDirectory() as scratch:
        parts = [machine.markdown() + "\n"]
        parts += [run(name, given, Path(scratch)) for name in BENCHMARKS]
    if given.markdown is not None:
        replace(given.markdown, "\n".join(parts))


if __name__ == "__main__":
    main()
