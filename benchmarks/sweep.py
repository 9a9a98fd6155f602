"""What a sweep's ledger costs: beside the same runs without it, and with very many jobs.

    python benchmarks/sweep.py [--quick]

The yardstick is a loop in one process that trains the same runs, one after another. The claims: the
ledger takes at most 3 % more of the CPU's time, and a plan of 10,000 jobs less than 5 seconds.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from tables import Table, options, show, verdict

from altcore.api import train
from altcore.sweep import Job, Ledger, SweepFile, Worker, jobs_of

COST, PLAN = 1.03, 5.0
BASE = {"gpt.size": "tiny", "max_steps": 40, "eval_interval": 0, "format": "E5M2"}
OBSERVERS = ["progress", "page"]
MANY = """
base: {{gpt.size: tiny}}
variants: {{master: {{}}, pure: {{recipe: pure}}}}
grid: {{learning_rate: {rates}, warmup_steps: [0, 1, 2, 3, 4]}}
seeds: {seeds}
"""
"""Ten jobs for each rate and seed."""


def cpu_seconds(call: Callable[[], object]) -> float:
    """Return the CPU's time in this process, of all its threads."""
    start = time.process_time()
    call()
    return time.process_time() - start


def cost(jobs: int, folder: Path) -> Table:
    """Run jobs by the ledger and without it, in turns."""
    keys = {**BASE, "no_plugins": OBSERVERS}
    ledger = Ledger(folder / "sweep")
    ledger.add(jobs_of(SweepFile(base=keys, seeds=jobs + 1)))
    one_more = {"waits": False, "tell": lambda _: None}
    plain, by_ledger = [], []

    def alone(job: Job) -> None:
        train(job.train_config(str(folder / "runs"), {}))

    def held(job: Job) -> None:
        chosen = Ledger(folder / "each" / job.name)
        chosen.add([job])
        Worker(chosen, 60.0, **one_more).work()

    for i, job in enumerate(ledger.jobs()):
        calls = [(plain, alone), (by_ledger, held)]
        for times, call in calls if i % 2 else calls[::-1]:
            times.append(cpu_seconds(lambda call=call, job=job: call(job)))
    # The first run of all imports what every run needs.
    ratios = [b / a for a, b in zip(plain[1:], by_ledger[1:], strict=True)]
    ratio = median(ratios)
    rows = [
        ("a loop in one process", f"{median(plain[1:]):.3f}", "1", "", ""),
        (
            "a worker with its ledger",
            f"{median(by_ledger[1:]):.3f}",
            f"{ratio:.3f}",
            *verdict(ratio, COST, at_most=True),
        ),
    ]
    head = ("", "CPU seconds", "times", "target", "")
    return Table("A run of gpt tiny, 40 steps", head, rows, ["By medians over runs in turns."])


def commands(count: int, folder: Path) -> Table:
    """Time commands on a sweep of very many jobs, with Python's start."""
    rates = [round(0.001 * (i + 1), 3) for i in range(count // 100)]
    (folder / "many.yaml").write_text(MANY.format(rates=rates, seeds=10))
    told = ("plan", "many.yaml", "--sweeps-dir", str(folder))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "altcore", "sweep", *told]
    subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    rows = [("plan", f"{seconds:.2f}", *verdict(seconds, PLAN, at_most=True))]
    head = ("", "CPU seconds", "target", "")
    return Table("`altcore sweep` with 10,000 jobs", head, rows)


def main() -> None:
    """Print both tables."""
    given = options(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        jobs, count = (2, 200) if given.quick else (20, 10_000)
        show((table(n, folder) for table, n in ((cost, jobs), (commands, count))), given)


if __name__ == "__main__":
    main()
