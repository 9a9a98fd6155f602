"""Differences of the training loss between runs of two studies, paired by seed.

    python experiments/paired.py RUNS/E7M0-pure-adamw OTHER_RUNS/E7M0-pure-grid

Each argument is the beginning of the names of one contender's runs. The script prints the second's
loss minus the first's, over the last tenth of the steps: mean and 95 % interval by Student's t.
"""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

from altcore.errors import BadInput
from altcore.runs import METRICS, read_lines
from altcore.study.runner import tail_length
from altcore.study.statistics import estimate

SELECTION = 1000  # seeds from here on choose a learning rate or confirm a change


def losses(prefix: str) -> dict[int, list[float]]:
    """Return the training losses of a contender's runs, by seed."""
    path, found = Path(prefix), {}
    for run in path.parent.glob(f"{path.name}-s*-lr*"):
        seed = int(re.search(r"-s(\d+)-lr", run.name)[1])
        if run.name.startswith(f"{path.name}-s{seed}-") and seed < SELECTION:
            if seed in found:
                raise BadInput(f"{prefix} has several runs of seed {seed}: another recipe or data")
            found[seed] = [x["loss"] for x in read_lines(run / METRICS) if "loss" in x]
    if not found:
        raise BadInput(f"there is no run {prefix}-s*-lr*")
    return found


def main(arguments: list[str]) -> None:
    """Print the difference of two contenders."""
    if len(arguments) != 2:
        raise SystemExit(__doc__)
    first, second = map(losses, arguments)
    differences = []
    for seed in sorted(set(first) & set(second)):
        a, b = first[seed], second[seed]
        count = tail_length(len(a))
        pairs = zip(a[-count:], b[-count:], strict=True)
        differences.append(math.fsum(y - x for x, y in pairs) / count)
    found = estimate(differences)
    print(f"{found.mean:.4f} [{found.low:.4f}, {found.high:.4f}], {found.n} seeds")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except BadInput as error:
        raise SystemExit(f"paired.py: {error}") from error
