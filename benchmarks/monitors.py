"""What the monitors of the loss slope take of 1,000 steps: time of the CPU, and memory.

    python benchmarks/monitors.py [--quick] [--steps 8]

The network is a ResNet-18 of width 0.25, with 128 images in a batch. ``curvature`` measures three
times, as by default, and ``grad-stats`` at each quarter epoch of CIFAR-10. A few steps tell:
what a monitor does in each step, or at each measurement, is always the same work. Its own hooks are
timed; "all of them" compares steps with all monitors to steps without any, taken in turn, so that
the lines which are recorded for them count as well. The claim is that all cost at most 15 %.

Time is that of the process on its CPU: another process that takes turns with it has no effect.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from unittest.mock import patch

from tables import Table, options, show, verdict

from altcore.config import defaults, load_config
from altcore.engine import Engine, Step, prepare
from altcore.sweep.usage import Usage

TARGET = 1.15
STEPS = 1000
MONITORS = ("grad-stats", "noise", "curvature", "loss-slope")
MEASURED = {"curvature": 3, "grad-stats": 1 + STEPS // 98}
"""How often in these steps: ``curvature`` in steps 1, 500 and 1,000."""
NONE, ALL = "no monitor", "all of them"


def make_engine(folder: str, plugins: Sequence[str]) -> Engine:
    """Return an engine with these monitors, whose run is in ``folder``, without observers."""
    keys = {
        "runs_dir": folder,
        "workload": "resnet18-cifar",
        "resnet18-cifar.data": "generated",
        "resnet18-cifar.width_mult": 0.25,
        "resnet18-cifar.batch_size": 128,
        "max_steps": 5000,
        "plugins": list(plugins),
        "strict": True,
        **({"grad-stats.interval": 98} if "grad-stats" in plugins else {}),
    }
    overrides = [(key, value, None) for key, value in keys.items()]
    return prepare(load_config(overrides=overrides, without=defaults()["observers"]))


def seconds(engine: Engine, index: int) -> float:
    """Take a step; returns the time of the CPU that it took."""
    start = time.process_time()
    engine.train_step(Step(index))
    return time.process_time() - start


def costs(steps: int) -> dict[str, float]:
    """Return what each monitor, and all of them, add to a step: in the mean over `STEPS`.

    As shares of a step without any. The first step has a measurement of each.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        stack.enter_context(patch("altcore.hook_clock.perf_counter", time.process_time))
        bare, watched = (make_engine(folder, names) for names in ((), MONITORS))
        for engine in (bare, watched):
            stack.callback(engine.directory.close)
            engine.dispatch.call("run_start", run=engine.run)
            engine.train_step(Step(1))
        spent = watched.dispatch.clock.seconds
        first = {who.name: taken for who, taken in spent.items()}
        pairs = [(seconds(bare, i), seconds(watched, i)) for i in range(2, 2 + steps)]
        rest = {who.name: (taken - first[who.name]) / steps for who, taken in spent.items()}
    step = statistics.median(b for b, _ in pairs)
    of_each = {name: rest[name] / step for name in MONITORS}
    once = {n: MEASURED.get(n, 1) * (first[n] - rest[n]) / step / STEPS for n in MONITORS}
    # What is measured now and then adds to the steps that measure nothing.
    all_of_them = statistics.median(w / b for b, w in pairs) - 1 + sum(once.values())
    return {**{name: of_each[name] + once[name] for name in MONITORS}, ALL: all_of_them}


def peak(plugins: Sequence[str]) -> float:
    """Return the most memory that this process had in steps with these monitors, in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        used, engine = Usage(), make_engine(folder, plugins)
        engine.dispatch.call("run_start", run=engine.run)
        for index in (1, 2):
            engine.train_step(Step(index))
        engine.directory.close()
        return used.memory["peak_memory_bytes"]


def memories(contenders: dict[str, Sequence[str]]) -> dict[str, float]:
    """Return the most memory of each, in a process of its own."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh, max_tasks_per_child=1) as pool:
        return dict(zip(contenders, pool.map(peak, contenders.values()), strict=True))


def rows(given: argparse.Namespace) -> list[tuple[str, ...]]:
    """One line a contender: its share of the time, and what it adds to the most memory."""
    alone = {} if given.quick else {name: [name] for name in MONITORS}
    contenders: dict[str, Sequence[str]] = {NONE: (), **alone, ALL: MONITORS}
    times, most = costs(given.steps), memories(contenders)
    made = [(NONE, "1.000", f"{most[NONE] / 2**20:.0f}", "", "")]
    for who in list(contenders)[1:]:
        ratio = 1 + times[who]
        more = f"+ {max(0.0, most[who] - most[NONE]) / 2**20:.0f}"
        claim = verdict(ratio, TARGET if who == ALL else None, at_most=True)
        made.append((who, f"{ratio:.3f}", more, *claim))
    return made


def main() -> None:
    """Print the shares."""
    parser = options(__doc__)
    parser.add_argument("--steps", type=int, default=8, help="taken of each")
    given = parser.parse_args()
    if given.quick:
        given.steps = 2
    head = ("", "times", "MiB at most", "target", "")
    title = f"{STEPS:,} steps of ResNet-18 at width 0.25 with 128 images, of one thread"
    notes = [f"Time of the CPU, by {given.steps} steps; memory is that of the process."]
    show([Table(title, head, rows(given), notes)], given)


if __name__ == "__main__":
    main()
