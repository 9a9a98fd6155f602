"""Start-up of the commands that everybody types, against ``python -c 'import click'``.

    python benchmarks/startup.py

The claim is at most 2.5 times, with no torch, attrs or plugin imported.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

ALTCORE = str(Path(sys.executable).with_name("altcore"))
COMMANDS = {
    "python -c 'import click'": [sys.executable, "-c", "import click"],
    "altcore --help": [ALTCORE, "--help"],
    "altcore plugins list": [ALTCORE, "plugins", "list"],
}


def measure(rounds: int = 15) -> dict[str, float]:
    """Return each command's median seconds, interleaved."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def main() -> None:
    """Print the ratios."""
    found = measure()
    base = next(iter(found.values()))
    for name, seconds in found.items():
        print(f"{name:<26} {seconds * 1e3:7.1f} ms  {seconds / base:5.2f}  (wanted: at most 2.5)")


if __name__ == "__main__":
    main()
