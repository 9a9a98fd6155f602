"""Rounding a tensor to a format and back, as a fraction of the speed of ``clone()``.

    python benchmarks/quantize.py [--quick] [--elements N] [--threads N] [--repeat N]
                                  [--device cuda]

Everything is measured in one process, interleaved: each round calls each candidate once, and the
fastest call of each counts, so that a busy machine disturbs all alike. The ratios are the claim,
not the times; made for 4 Mi float32, and given for bfloat16 and larger tensors beside.
``clone()`` reads a tensor and writes a fresh one, the least that rounding can do.
Other libraries that are slow get a part of the tensor and fewer calls.

On a GPU each turn calls a candidate for several tensors, one after another: so its caches have none
of them, and Python prepares a call during the one before. The median turn counts, after one in
which torch.compile compiles.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from clock import Clock
from machine import cores
from peers import available, reason
from tables import Table, fraction, options, show, verdict
from torch import Tensor

from altcore import Format, fake_quantize, get_format, table_format
from altcore.numerics import COUNTS, ERRORS, Meters, amax, fake_round, scale_of

EXMY = (
    *("E0M7", "E1M6", "E2M5", "E3M4", "E4M3", "E5M2", "E6M1", "E7M0"),
    *("E2M1", "E2M3", "E3M2", "BF16"),
)
BLOCKS = ("MXFP8-E4M3", "MXFP4", "NVFP4")
MI = 2**20
USUAL, LARGE = 4 * MI, 64 * MI
USUAL_ON_GPU, LARGE_ON_GPU = 64 * MI, 256 * MI
TENSORS_ON_GPU = 8
WIDTH = 1024  # of a row; blocks lie in rows
PATIENCE = 4.0  # seconds that all calls of a row may take
HEAD = ("", "ms", "of clone", "target", "")


@dataclass(frozen=True)
class Row:
    """One candidate: its name, the call, what is claimed of its speed, and of which speed."""

    name: str
    call: Callable[[Tensor], object]
    target: float | None = None  # as a fraction of the speed of `of`; None: no claim
    of: str = "clone"
    share: float = 1  # of the tensor, that it takes
    is_main: bool = False  # measured for every dtype, size and number of threads


def tables() -> dict[str, Format]:
    """What is looked up instead of computed: small and large ones, even and arbitrary ones."""
    normal = torch.distributions.Normal(0.0, 1.0)
    quantiles = normal.icdf(torch.linspace(0.03, 0.97, 16, dtype=torch.float64)).tolist()
    steps = [sign * 1.05**k for k in range(-63, 64) for sign in (-1, 1)]
    draw = random.Random(0)
    numbers = sorted(draw.gauss(0, 1) for _ in range(20))
    made = {
        "table of 16 values": table_format("16", quantiles),
        "table of 20 arbitrary numbers": table_format("20", numbers),
        "table of 255 values": table_format("255", sorted([*steps, 0.0])),
    }
    return made | {name: get_format(name) for name in ("posit8_1", "posit16_1", "LOG4_3-by-value")}


def counted(
    device: torch.device, fmt: Format, *, by_amax: bool = False
) -> Callable[[Tensor], object]:
    """Rounding with every counter, and the sums of squared errors."""
    counts = torch.zeros(len(COUNTS), dtype=torch.int64, device=device)
    errors = torch.zeros(len(ERRORS), dtype=torch.float64, device=device)

    def run(x: Tensor) -> object:
        s, r = scale_of(amax(x), fmt) if by_amax else (None, None)
        return fake_round(x, fmt, r=r, s=s, meters=Meters(counts, errors))

    return run


def floats(device: torch.device) -> list[Row]:
    """Formats that are computed."""
    e4m3, e5m2, e7m0 = map(get_format, ("E4M3", "E5M2", "E7M0"))
    drawn = partial(fake_quantize, rounding="stochastic", key=1)
    rows = [
        Row(f"{n} nearest", partial(fake_quantize, fmt=get_format(n)), 0.9, is_main=n == "E4M3")
        for n in EXMY
    ]
    plain, scaled = "E4M3 nearest", "E4M3 scaled by amax"
    return [
        *rows,
        Row("E4M3 up", partial(fake_quantize, fmt=e4m3, rounding="up")),
        Row("E4M3 stochastic", partial(drawn, fmt=e4m3), 0.8, is_main=True),
        Row("E5M2 stochastic", partial(drawn, fmt=e5m2), 0.8),
        Row("E7M0 stochastic", partial(drawn, fmt=e7m0), 0.8),
        Row(scaled, partial(fake_quantize, fmt=e4m3, scale="amax"), 0.7, is_main=True),
        Row("E5M2 scaled by amax", partial(fake_quantize, fmt=e5m2, scale="amax"), 0.7),
        Row("E4M3, all counters", counted(device, e4m3), 0.6, of=plain, is_main=True),
        Row(
            "E4M3 by amax, all counters",
            counted(device, e4m3, by_amax=True),
            0.6,
            of=scaled,
            is_main=True,
        ),
        Row("amax alone", amax),
    ]


def looked_up(device: torch.device) -> list[Row]:
    """Formats that are tables."""
    made, main = tables(), ("table of 16 values", "posit8_1")
    rows = [
        Row(f"{name} nearest", partial(fake_quantize, fmt=fmt), 0.3, is_main=name in main)
        for name, fmt in made.items()
    ]
    fmt = made["posit8_1"]
    drawn = partial(fake_quantize, fmt=fmt, rounding="stochastic", key=1)
    return [
        *rows,
        Row("posit8_1 stochastic", drawn),
        Row("posit8_1, all counters", counted(device, fmt), 0.6, of="posit8_1 nearest"),
    ]


def in_blocks() -> list[Row]:
    """Formats whose numbers share scales."""
    return [
        Row(f"{n} there and back", partial(fake_quantize, fmt=get_format(n)), 0.8, is_main=True)
        for n in BLOCKS
    ]


def ours(device: torch.device) -> list[Row]:
    """What altcore does with its kernels, and on a GPU with those of torch.compile."""
    return [*floats(device), *looked_up(device), *in_blocks()]


@contextlib.contextmanager
def torch_path() -> Iterator[None]:
    """Inside, the compiled kernels are off."""
    before = os.environ.get("ALTCORE_KERNELS")
    os.environ["ALTCORE_KERNELS"] = "off"
    try:
        yield
    finally:
        os.environ.pop("ALTCORE_KERNELS")
        if before is not None:
            os.environ["ALTCORE_KERNELS"] = before


def by_torch(call: Callable[[Tensor], object], x: Tensor) -> object:
    """The same call by torch operations: without a compiler, and under tracing."""
    with torch_path():
        return call(x)


def others(x: Tensor) -> tuple[list[Row], dict[str, str]]:
    """Peers and altcore side by side, by operation; and the peers that are not to be had."""
    own = {row.name: row for row in ours(x.device)}
    found, missing = available(x)
    operations = dict.fromkeys(name for calls in found.values() for name in calls)
    rows = []
    for name in (n for n in own if n in operations):
        rows.append(Row(f"{name}: altcore", own[name].call))
        rows += [
            Row(f"{name}: {peer}", *calls[name][:1], share=calls[name][1])
            for peer, calls in found.items()
            if name in calls
        ]
        call = partial(by_torch, own[name].call)
        rows.append(Row(f"{name}: altcore in torch operations", call))
    return rows, missing


def in_turn(call: Callable[[Tensor], object], xs: list[Tensor]) -> object:
    """Call for one tensor after another; returns the last result."""
    for x in xs:
        result = call(x)
    return result


def failures(rows: list[Row], x: Tensor, clock: Clock) -> dict[str, str]:
    """Call each once; returns what those say that fail, as other libraries' may on this device."""
    found = {}
    for row in rows:
        try:
            clock.seconds(partial(row.call, x))
        except Exception as error:
            found[row.name] = reason(error, "fails here")
    return found


def measure(rows: list[Row], xs: list[Tensor], repeat: int, clock: Clock) -> dict[str, float]:
    """The typical call of each, in seconds for a whole tensor.

    In a new order each round, because what comes before a call matters to it. What is slow gets
    fewer calls, by the time that it took and not by its best: on a busy machine a fast one may
    look slow for a while.
    """
    order, shuffle = list(rows), random.Random(0).shuffle
    times: dict[str, list[float]] = {row.name: [] for row in rows}
    spent = dict.fromkeys(times, 0.0)
    if clock.is_gpu:
        for row in rows:
            clock.seconds(partial(in_turn, row.call, xs))  # torch.compile compiles here
    for turn in range(repeat):
        shuffle(order)
        for row in order:
            if turn >= 3 and spent[row.name] > PATIENCE:
                continue
            seconds = clock.seconds(partial(in_turn, row.call, xs))
            times[row.name].append(seconds / len(xs) / row.share)
            spent[row.name] += seconds
    return {name: clock.typical(taken) for name, taken in times.items()}


def cells(row: Row, best: dict[str, float]) -> list[tuple[str, ...]]:
    """The lines of a row; a second one where the claim is of another's speed than clone's."""
    ratio = best["clone"] / best[row.name]
    first = (row.name, f"{best[row.name] * 1e3:.2f}", fraction(ratio))
    if row.of == "clone":
        return [(*first, *verdict(ratio, row.target))]
    of_other = best[row.of] / best[row.name]
    name = f"{row.name}: fraction of {row.of}"
    return [(*first, "", ""), (name, "", fraction(of_other), *verdict(of_other, row.target))]


def lines(
    groups: list[list[Row]], xs: list[Tensor], repeat: int, clock: Clock
) -> Iterator[tuple[str, ...]]:
    """What a table says of some groups of candidates.

    The fast and the slow are measured apart, each with a clone of its own: a slow one empties
    the caches for the next.
    """
    clone = Row("clone", torch.clone)
    for i, group in enumerate(groups):
        failed = failures(group, xs[0], clock) if i else {}  # the first group is altcore's own
        group = [row for row in group if row.name not in failed]
        best = measure([clone, *group], xs, repeat, clock)
        for row in group if i else [clone, *group]:
            yield from cells(row, best)
        yield from ((name, "", "", "", why) for name, why in failed.items())


@dataclass(frozen=True)
class Case:
    """One table: what is rounded, and by how many threads of a CPU."""

    dtype: torch.dtype
    elements: int
    threads: int | None
    is_full: bool = False  # all rows and claims, not the main rows alone
    has_peers: bool = False

    @property
    def title(self) -> str:
        """What it is called in docs/benchmarks.md."""
        size = f"{self.elements // MI} Mi" if self.elements % MI == 0 else f"{self.elements}"
        threads = f", {self.threads} thread{'s' * (self.threads > 1)}" if self.threads else ""
        return f"{str(self.dtype).removeprefix('torch.')}, {size} elements{threads}"


def cases(given: argparse.Namespace) -> Iterator[Case]:
    """What is measured; one thread and two, where there are two."""
    numbers = [given.threads] if given.threads else range(min(cores(), 2), 0, -1)
    usual = given.elements or USUAL
    for i, threads in enumerate(numbers):
        yield Case(torch.float32, usual, threads, is_full=True, has_peers=not i)
    for threads in numbers:
        yield Case(torch.bfloat16, usual, threads)
        if not given.elements:
            yield Case(torch.float32, LARGE, threads)


def cases_on_gpu(given: argparse.Namespace) -> Iterator[Case]:
    """What is measured there; with ``--quick`` the main rows of one table."""
    usual = given.elements or USUAL_ON_GPU
    yield Case(torch.float32, usual, None, is_full=not given.quick, has_peers=True)
    if not given.quick:
        yield Case(torch.bfloat16, usual, None)
        if not given.elements:
            yield Case(torch.float32, LARGE_ON_GPU, None)


def table(case: Case, repeat: int, divisor: int, clock: Clock) -> Table:
    """Measure one case; of a tensor smaller by ``divisor``, to see that it runs."""
    if case.threads is not None:
        torch.set_num_threads(case.threads)
    rows = max(case.elements // divisor // WIDTH, 1)
    generator = torch.Generator(clock.device).manual_seed(0)
    draw = partial(torch.randn, rows, WIDTH, generator=generator, device=clock.device)
    xs = [draw().to(case.dtype) for _ in range(TENSORS_ON_GPU if clock.is_gpu else 1)]
    own = [row for row in ours(clock.device) if case.is_full or row.is_main]
    if clock.is_gpu or not case.is_full:
        own = [replace(row, target=None) for row in own]
    groups = [own]
    missing: dict[str, str] = {}
    if case.has_peers:
        peers, missing = others(xs[0])
        groups.append(peers)
    made = Table(clock.titled(case.title), HEAD, list(lines(groups, xs, repeat, clock)))
    built = {name: why for name, why in missing.items() if not why.startswith("not installed")}
    made.rows += [(name, "", "", "", why) for name, why in built.items()]
    made.notes += [f"{n}: {why}." for n, why in missing.items() if n not in built]
    return made


def main() -> None:
    """Print a table for each case."""
    parser = options(__doc__, runs_on_gpu=True)
    parser.add_argument("--elements", type=int, help="only tensors of this size")
    parser.add_argument("--threads", type=int, help="only this number of threads")
    parser.add_argument("--repeat", type=int, default=25)
    given = parser.parse_args()
    clock = Clock(torch.device(given.device))
    few = (given.repeat, 1) if clock.is_gpu else (1, 64)
    repeat, divisor = few if given.quick else (given.repeat, 1)
    chosen = cases_on_gpu(given) if clock.is_gpu else cases(given)
    show((table(case, repeat, divisor, clock) for case in chosen), given)


if __name__ == "__main__":
    main()
