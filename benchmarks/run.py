"""``make bench``: every benchmark, one after another; ratios within one run, no absolute claim."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
BENCHMARKS = ("startup.py", "engine.py", "quantize.py")


def main() -> None:
    """Run each in a process of its own, so that none warms up another."""
    for name in BENCHMARKS:
        print(f"\n== {name}", flush=True)
        subprocess.run([sys.executable, str(HERE / name)], check=True)


if __name__ == "__main__":
    main()
