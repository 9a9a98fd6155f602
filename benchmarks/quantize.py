"""Rounding a tensor to a format and back, as a fraction of the speed of ``clone()``.

    python benchmarks/quantize.py [--quick] [--elements N] [--threads N] [--repeat N]

Everything is measured in one process, interleaved: each round calls each candidate once, and the
fastest call of each counts, so that a busy machine disturbs all alike. The ratios are the claim,
not the times; made for 4 Mi float32, and given for bfloat16 and larger tensors beside.
``clone()`` reads a tensor and writes a fresh one, the least that rounding can do.
Other libraries that are slow get a part of the tensor and fewer calls.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from machine import cores
from peers import available
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
WIDTH = 1024  # of a row; blocks lie in rows
PATIENCE = 4.0  # seconds that all calls of a row may take
HEAD = ("", "ms", "of clone", "target", "")


@dataclass(frozen=True)
class Row:
    """One candidate: its name, the call, what is claimed of its speed, and of which speed."""

    name: str
    call: Callable[[], object]
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


def counted(x: Tensor, fmt: Format, *, by_amax: bool = False) -> Callable[[], object]:
    """Rounding with every counter, and the sums of squared errors."""
    counts = torch.zeros(len(COUNTS), dtype=torch.int64)
    errors = torch.zeros(len(ERRORS), dtype=torch.float64)

    def run() -> object:
        s, r = scale_of(amax(x), fmt) if by_amax else (None, None)
        return fake_round(x, fmt, r=r, s=s, meters=Meters(counts, errors))

    return run


def floats(x: Tensor) -> list[Row]:
    """Formats that are computed."""
    e4m3, e5m2, e7m0 = map(get_format, ("E4M3", "E5M2", "E7M0"))
    drawn = partial(fake_quantize, x, rounding="stochastic", key=1)
    rows = [
        Row(f"{n} nearest", partial(fake_quantize, x, get_format(n)), 0.9, is_main=n == "E4M3")
        for n in EXMY
    ]
    plain, scaled = "E4M3 nearest", "E4M3 scaled by amax"
    return [
        *rows,
        Row("E4M3 up", partial(fake_quantize, x, e4m3, rounding="up")),
        Row("E4M3 stochastic", partial(drawn, e4m3), 0.8, is_main=True),
        Row("E5M2 stochastic", partial(drawn, e5m2), 0.8),
        Row("E7M0 stochastic", partial(drawn, e7m0), 0.8),
        Row(scaled, partial(fake_quantize, x, e4m3, "amax"), 0.7, is_main=True),
        Row("E5M2 scaled by amax", partial(fake_quantize, x, e5m2, "amax"), 0.7),
        Row("E4M3, all counters", counted(x, e4m3), 0.6, of=plain, is_main=True),
        Row(
            "E4M3 by amax, all counters",
            counted(x, e4m3, by_amax=True),
            0.6,
            of=scaled,
            is_main=True,
        ),
        Row("amax alone", lambda: amax(x)),
    ]


def looked_up(x: Tensor) -> list[Row]:
    """Formats that are tables."""
    made, main = tables(), ("table of 16 values", "posit8_1")
    rows = [
        Row(f"{name} nearest", partial(fake_quantize, x, fmt), 0.3, is_main=name in main)
        for name, fmt in made.items()
    ]
    fmt = made["posit8_1"]
    drawn = partial(fake_quantize, x, fmt, rounding="stochastic", key=1)
    return [
        *rows,
        Row("posit8_1 stochastic", drawn),
        Row("posit8_1, all counters", counted(x, fmt), 0.6, of="posit8_1 nearest"),
    ]


def in_blocks(x: Tensor) -> list[Row]:
    """Formats whose numbers share scales."""
    return [
        Row(f"{n} there and back", partial(fake_quantize, x, get_format(n)), 0.8, is_main=True)
        for n in BLOCKS
    ]


def ours(x: Tensor) -> list[Row]:
    """What altcore does with its kernels."""
    return [*floats(x), *looked_up(x), *in_blocks(x)]


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


def by_torch(call: Callable[[], object]) -> object:
    """The same call by torch operations: without a compiler, on GPUs and under tracing."""
    with torch_path():
        return call()


def others(x: Tensor) -> tuple[list[Row], dict[str, str]]:
    """Peers and altcore side by side, by operation; and the peers that are not to be had."""
    own = {row.name: row for row in ours(x)}
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


def measure(rows: list[Row], repeat: int) -> dict[str, float]:
    """The fastest call of each, in seconds for the whole tensor.

    In a new order each round, because what comes before a call matters to it. What is slow gets
    fewer calls, by the time that it took and not by its best: on a busy machine a fast one may
    look slow for a while.
    """
    order, shuffle = list(rows), random.Random(0).shuffle
    best = {row.name: float("inf") for row in rows}
    spent = dict.fromkeys(best, 0.0)
    for turn in range(repeat):
        shuffle(order)
        for row in order:
            if turn >= 3 and spent[row.name] > PATIENCE:
                continue
            start = time.perf_counter()
            result = row.call()
            seconds = time.perf_counter() - start
            best[row.name] = min(best[row.name], seconds / row.share)
            spent[row.name] += seconds
            del result
    return best


def cells(row: Row, best: dict[str, float]) -> list[tuple[str, ...]]:
    """The lines of a row; a second one where the claim is of another's speed than clone's."""
    ratio = best["clone"] / best[row.name]
    first = (row.name, f"{best[row.name] * 1e3:.2f}", fraction(ratio))
    if row.of == "clone":
        return [(*first, *verdict(ratio, row.target))]
    of_other = best[row.of] / best[row.name]
    name = f"{row.name}: fraction of {row.of}"
    return [(*first, "", ""), (name, "", fraction(of_other), *verdict(of_other, row.target))]


def lines(groups: list[list[Row]], clone: Row, repeat: int) -> Iterator[tuple[str, ...]]:
    """What a table says of some groups of candidates.

    The fast and the slow are measured apart, each with a clone of its own: a slow one empties
    the caches for the next.
    """
    for i, group in enumerate(groups):
        best = measure([clone, *group], repeat)
        for row in group if i else [clone, *group]:
            yield from cells(row, best)


@dataclass(frozen=True)
class Case:
    """One table: what is rounded, and by how many threads."""

    dtype: torch.dtype
    elements: int
    threads: int
    is_full: bool = False  # all rows and claims, not the main rows alone
    has_peers: bool = False

    @property
    def title(self) -> str:
        """What it is called in docs/benchmarks.md."""
        size = f"{self.elements // MI} Mi" if self.elements % MI == 0 else f"{self.elements}"
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"{str(self.dtype).removeprefix('torch.')}, {size} elements, {threads}"


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


def table(case: Case, repeat: int, divisor: int) -> Table:
    """Measure one case; of a tensor smaller by ``divisor``, to see that it runs."""
    torch.set_num_threads(case.threads)
    rows = max(case.elements // divisor // WIDTH, 1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, WIDTH, generator=generator).to(case.dtype)
    clone = Row("clone", x.clone)
    own = ours(x) if case.is_full else [replace(r, target=None) for r in ours(x) if r.is_main]
    groups = [own]
    missing: dict[str, str] = {}
    if case.has_peers:
        peers, missing = others(x)
        groups.append(peers)
    made = Table(case.title, HEAD, list(lines(groups, clone, repeat)))
    built = {name: why for name, why in missing.items() if not why.startswith("not installed")}
    made.rows += [(name, "", "", "", why) for name, why in built.items()]
    made.notes += [f"{n}: {why}." for n, why in missing.items() if n not in built]
    return made


def main() -> None:
    """Print a table for each case."""
    parser = options(__doc__)
    parser.add_argument("--elements", type=int, help="only tensors of this size")
    parser.add_argument("--threads", type=int, help="only this number of threads")
    parser.add_argument("--repeat", type=int, default=25)
    given = parser.parse_args()
    repeat, divisor = (1, 64) if given.quick else (given.repeat, 1)
    show((table(case, repeat, divisor) for case in cases(given)), given)


if __name__ == "__main__":
    main()
