"""Rounding a small tensor, where calls cost more than arithmetic.

    python benchmarks/small.py [--quick] [--device cuda]

The yardstick is three elementwise operations, one after another, on the same tensor: what
somebody would write who scales, rounds and scales back. The claim is at most twice that time.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import torch
from clock import Clock
from tables import Table, options, show, verdict
from torch import Tensor

from altcore import fake_quantize, get_format
from altcore.numerics import COUNTS, ERRORS, Meters, Rule, amax, fake_round, round_to_grid, scale_of

SIDE = 64
TARGET = 2.0
CALLS = 50  # in one measurement: a single one is too short for the clock


def three_operations(x: Tensor, r: Tensor, s: Tensor) -> Tensor:
    """Scale, round, scale back."""
    return torch.round(x * r) * s


def candidates(x: Tensor) -> dict[str, tuple[Callable[[], object], float | None]]:
    """Each call, and how many times the yardstick's time it may take; None for no claim."""
    fmt, table, mx = get_format("E4M3"), get_format("posit8_1"), get_format("MXFP4")
    s, r = scale_of(amax(x), fmt)
    counts = torch.zeros(len(COUNTS), dtype=torch.int64, device=x.device)
    errors = torch.zeros(len(ERRORS), dtype=torch.float64, device=x.device)
    drawn = {"rule": Rule("stochastic"), "key": 1}

    def by_amax() -> Tensor:
        s, r = scale_of(amax(x), fmt)
        return fake_round(x, fmt, r=r, s=s)

    return {
        "three elementwise operations": (partial(three_operations, x, r, s), None),
        "round_to_grid": (partial(round_to_grid, x, fmt), TARGET),
        "round_to_grid, counted": (partial(round_to_grid, x, fmt, meters=Meters(counts)), None),
        "round_to_grid, all counters": (
            partial(round_to_grid, x, fmt, meters=Meters(counts, errors)),
            None,
        ),
        "round_to_grid, a table": (partial(round_to_grid, x, table), None),
        "round_to_grid, stochastic": (partial(round_to_grid, x, fmt, **drawn), None),
        "fake_round, a given scale": (partial(fake_round, x, fmt, r=r, s=s), TARGET),
        "amax, scale_of, fake_round": (by_amax, None),
        "amax alone": (partial(amax, x), None),
        "fake_quantize, a given scale": (partial(fake_quantize, x, fmt, 0.01), TARGET),
        "fake_quantize, amax": (partial(fake_quantize, x, fmt, "amax"), TARGET),
        "fake_quantize, amax, format by name": (partial(fake_quantize, x, "E4M3", "amax"), None),
        "fake_quantize, MXFP4": (partial(fake_quantize, x, mx), None),
    }


def repeated(call: Callable[[], object], calls: int) -> None:
    """Call so many times."""
    for _ in range(calls):
        call()


def table(clock: Clock, repeat: int, calls: int) -> Table:
    """All calls interleaved, in a new order each round; the first round does not count."""
    x = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(0)).to(clock.device)
    each = candidates(x)
    order, shuffle = list(each), random.Random(0).shuffle
    times: dict[str, list[float]] = {name: [] for name in each}
    for turn in range(repeat + 1):
        shuffle(order)
        for name in order:
            taken = clock.seconds(partial(repeated, each[name][0], calls)) / calls
            if turn:
                times[name].append(taken)
    typical = {name: clock.typical(taken) for name, taken in times.items()}
    base, rows = next(iter(typical.values())), []
    for name, found in typical.items():
        target = None if clock.is_gpu else each[name][1]
        claim = verdict(found / base, target, at_most=True)
        rows.append((name, f"{found * 1e6:.1f}", f"{found / base:.2f}", *claim))
    title = clock.titled(f"{SIDE} x {SIDE} float32")
    return Table(title, ("", "microseconds", "times", "target", ""), rows)


def main() -> None:
    """Print the times."""
    given = options(__doc__, runs_on_gpu=True).parse_args()
    clock = Clock(torch.device(given.device))
    few = (20, CALLS) if clock.is_gpu else (3, 2)
    show([table(clock, *few if given.quick else (100, CALLS))], given)


if __name__ == "__main__":
    main()
