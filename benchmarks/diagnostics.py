"""The engine's step with diagnostics at their default intervals, against the step without any.

    python benchmarks/diagnostics.py [--quick] [--together] [--intervals 5] [--size small]
                                     [--format E4M3] [--recipe pure] [--device cuda]

Every installed diagnostic alone, and all together, but for those that look at every step, or at one
in 500 (monitors.py has them): each has an engine of its own, and all take
their steps in turn, in one process. Diagnostics measure every so many steps, and some watch the
steps before that, so what counts is the mean step over whole intervals, the due steps included.
The claim is that all together cost at most a tenth.

A machine that does something else for a moment makes one step late, and that step's cost is a
fiftieth of the result where it is a due one. So every step of the interval, by its place in it, is
the median over the intervals, and the claim is judged by the mean of these fifty; the plain mean
stands beside it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from functools import partial

import torch
from clock import Clock
from tables import Table, options, show, verdict

from altcore import registry
from altcore.config import defaults, load_config
from altcore.engine import Engine, Step, prepare

TARGET = 1.10
INTERVAL = 50
ELSEWHERE = {"noise", "curvature", "loss-slope"}
"""Diagnostics that monitors.py measures."""
NONE, ALL = "no diagnostic", "all of them"


def installed() -> list[str]:
    """Return the names of the diagnostics that are installed.

    Of those that share passes of the model, the one that wants most of them comes first.
    """
    names = {e.name for e in registry.entries() if e.kind == "diagnostic"} - ELSEWHERE
    return sorted(names, key=lambda name: (name != "shadow", name))


def make_engine(folder: str, plugins: list[str], given: argparse.Namespace) -> Engine:
    """Return an engine with these plugins, whose run is in ``folder``, without observers."""
    keys = {
        "runs_dir": folder,
        "device": given.device,
        "format": given.format,
        "recipe": given.recipe,
        "max_steps": 100_000,
        "eval_interval": 0,
        "checkpoint_interval": 0,
        "plugins": plugins,
        "gpt.size": given.size,
    }
    overrides = [(key, value, None) for key, value in keys.items()]
    return prepare(load_config(overrides=overrides, without=defaults()["observers"]))


def measure(given: argparse.Namespace, clock: Clock) -> dict[str, list[float]]:
    """Return the seconds of each contender's steps, over whole intervals.

    Before that each takes the last steps of an interval, and its diagnostics measure once.
    """
    names = installed()
    alone = {} if given.quick or given.together else {name: [name] for name in names}
    contenders = {NONE: [], **alone, ALL: names}
    with tempfile.TemporaryDirectory() as folder:
        engines = {who: make_engine(folder, own, given) for who, own in contenders.items()}
        for engine in engines.values():
            engine.dispatch.call("run_start", run=engine.run)
        times: dict[str, list[float]] = {who: [] for who in contenders}
        warm_up, end = INTERVAL - 4, INTERVAL * (1 + given.intervals)
        order = list(contenders)
        for index in range(warm_up, end + 1):
            for who in order:
                taken = clock.seconds(partial(engines[who].train_step, Step(index)))
                if index > INTERVAL:
                    times[who].append(taken)
            order.append(order.pop(0))  # so that none always comes after the same one
        degraded = {who: e.run.degraded for who, e in engines.items() if e.run.degraded}
        for engine in engines.values():
            engine.directory.close()
    if degraded:
        raise SystemExit(f"diagnostics broke: {degraded}")
    return times


def by_medians(taken: list[float]) -> float:
    """The mean step of an interval, each of its steps being the median over the intervals."""
    places = [taken[place::INTERVAL] for place in range(INTERVAL)]
    return statistics.fmean(statistics.median(own) for own in places)


def due(taken: list[float]) -> float:
    """The median step that the interval divides."""
    return statistics.median(taken[INTERVAL - 1 :: INTERVAL])


def rows(times: dict[str, list[float]], clock: Clock) -> list[tuple[str, ...]]:
    """One line a contender: its mean step, over that without, and what a due step costs."""
    mean, median = statistics.fmean(times[NONE]), by_medians(times[NONE])
    made = []
    for who, taken in times.items():
        ratio = by_medians(taken) / median
        cells = (f"{by_medians(taken) * 1e3:.1f}", f"{ratio:.3f}")
        cells = (*cells, f"{statistics.fmean(taken) / mean:.3f}", f"{due(taken) / median:.2f}")
        claim = verdict(ratio, TARGET if who == ALL and not clock.is_gpu else None, at_most=True)
        made.append((who, *cells, *claim))
    return made


def main() -> None:
    """Print the ratios."""
    parser = options(__doc__, runs_on_gpu=True)
    parser.add_argument("--intervals", type=int, default=5, help="whole intervals measured")
    parser.add_argument("--together", action="store_true", help="none and all, no single ones")
    parser.add_argument("--size", default="small", help="of the workload gpt")
    parser.add_argument("--format", default="E4M3")
    parser.add_argument("--recipe", default="pure")
    given = parser.parse_args()
    clock = Clock(torch.device(given.device))
    if given.quick:
        given.intervals, given.size = 1, given.size if clock.is_gpu else "tiny"
    head = ("", "ms", "times", "by means", "a due step", "target", "")
    title = f"A step of gpt in {given.format} ({given.recipe}), a measurement in {INTERVAL}"
    notes = [
        f"By medians over {given.intervals} intervals; a due step is one that {INTERVAL} divides. "
        f"The model is {given.size}."
    ]
    show([Table(clock.titled(title), head, rows(measure(given, clock), clock), notes)], given)


if __name__ == "__main__":
    main()
