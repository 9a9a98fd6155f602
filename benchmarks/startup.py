"""Start-up of the commands that everybody types, against ``python -c 'import click'``.

    python benchmarks/startup.py [--quick]

The claim is at most 2.5 times, with no torch, attrs or plugin imported.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from tables import Table, options, show, verdict

ALTCORE = str(Path(sys.executable).with_name("altcore"))
COMMANDS = {
    "python -c 'import click'": [sys.executable, "-c", "import click"],
    "altcore --help": [ALTCORE, "--help"],
    "altcore plugins list": [ALTCORE, "plugins", "list"],
}
TARGET = 2.5


def measure(rounds: int) -> dict[str, float]:
    """Return each command's median seconds, interleaved."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def table(found: dict[str, float]) -> Table:
    """The times, and their ratios to the first."""
    base = next(iter(found.values()))
    rows = []
    for i, (name, seconds) in enumerate(found.items()):
        ratio = seconds / base
        claim = verdict(ratio, TARGET if i else None, at_most=True)
        rows.append((name, f"{seconds * 1e3:.1f}", f"{ratio:.2f}", *claim))
    return Table("Start-up, median", ("", "ms", "times", "target", ""), rows)


def main() -> None:
    """Print the ratios."""
    given = options(__doc__).parse_args()
    show([table(measure(rounds=2 if given.quick else 15))], given)


if __name__ == "__main__":
    main()
