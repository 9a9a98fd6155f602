"""Rounding a tensor to a format's grid, as a fraction of the speed of ``clone()``.

    python benchmarks/quantize.py [--quick] [--elements N] [--repeat N] [--threads N]

Everything is measured in one process, interleaved: each round calls each candidate once, and the
fastest call of each counts, so that a busy machine disturbs all alike. The ratios are the claim,
not the times. ``clone()`` reads a tensor and writes a fresh one, the least that rounding can do.
Oracles are called a few times only, on a part of the tensor where they are slow.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator

import gfloat
import gfloat.formats
import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from altcore import get_format
from altcore.formats import Format, table_format
from altcore.numerics import COUNTS, amax, fake_round, round_to_grid, scale_of
from altcore.numerics.build import library

EXMY = ("E0M7", "E1M6", "E2M5", "E3M4", "E4M3", "E5M2", "E6M1", "E7M0", "BF16")
SLOW = 1 / 64  # the part of the tensor that gfloat gets

# name, target as a fraction of clone's speed (None: no claim), call, share of the tensor it takes
Candidate = tuple[str, float | None, Callable[[], object], float]


def tables() -> dict[str, Format]:
    """A small and a large table: normal quantiles, and steps of 5 %."""
    normal = torch.distributions.Normal(0.0, 1.0)
    quantiles = normal.icdf(torch.linspace(0.03, 0.97, 16, dtype=torch.float64)).tolist()
    steps = [sign * 1.05**k for k in range(-63, 64) for sign in (-1, 1)]
    return {
        "16 values": table_format("16", quantiles),
        "255 values": table_format("255", sorted([*steps, 0.0])),
    }


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


def by_torch(call: Callable[[], object]) -> Callable[[], object]:
    """The same call by torch operations."""

    def run() -> object:
        with torch_path():
            return call()

    return run


def amax_scaled(x: Tensor, fmt: Format) -> Tensor:
    """The usual thing: exact amax of the tensor, scale, round, scale back."""
    s, r = scale_of(amax(x), fmt)
    return fake_round(x, fmt, r=r, s=s)


def ours(x: Tensor) -> list[Candidate]:
    """What altcore does, with the kernels and without."""
    e4m3, e7m0 = get_format("E4M3"), get_format("E7M0")
    s, r = scale_of(amax(x), e4m3)
    half, counts = x.bfloat16(), torch.zeros(len(COUNTS), dtype=torch.int64)
    drawn = {"rounding": "stochastic", "key": 1}
    rows: list[Candidate] = [
        (f"{name} nearest", 0.9, lambda f=fmt: round_to_grid(x, f), 1)
        for name, fmt in zip(EXMY, map(get_format, EXMY), strict=True)
    ]
    rows += [
        ("E4M3 up", None, lambda: round_to_grid(x, e4m3, rounding="up"), 1),
        ("E4M3 stochastic", 0.8, lambda: round_to_grid(x, e4m3, **drawn), 1),
        ("E7M0 stochastic", 0.8, lambda: round_to_grid(x, e7m0, **drawn), 1),
        ("E4M3 counted", None, lambda: round_to_grid(x, e4m3, counts=counts), 1),
        ("E4M3 scaled and back", None, lambda: fake_round(x, e4m3, r=r, s=s), 1),
        ("E4M3 amax, scaled and back", 0.7, lambda: amax_scaled(x, e4m3), 1),
        ("E4M3 amax, bfloat16", None, lambda: amax_scaled(half, e4m3), 1),
        ("amax alone", None, lambda: amax(x), 1),
    ]
    for name, fmt in tables().items():
        rows.append((f"table, {name}", 0.3, lambda f=fmt: round_to_grid(x, f), 1))
    rows.append(("table, stochastic", None, lambda: round_to_grid(x, fmt, **drawn), 1))
    return rows


def torch_operations(x: Tensor) -> list[Candidate]:
    """The path without a compiler, on GPUs and under tracing."""
    chosen = ("E4M3 nearest", "E4M3 stochastic", "E4M3 amax, scaled and back", "table, 255 values")
    return [
        (f"torch operations: {name}", None, by_torch(call), 1)
        for name, _, call, _ in ours(x)
        if name in chosen
    ]


def others(x: Tensor) -> list[Candidate]:
    """Other people's ways to round to E4M3 and back."""
    array = x.numpy()
    part = array[: max(int(len(array) * SLOW), 1)]
    info = gfloat.formats.format_info_ocp_e4m3
    return [
        ("torch cast, E4M3", None, lambda: x.to(torch.float8_e4m3fn).to(torch.float32), 1),
        ("torch cast, E5M2", None, lambda: x.to(torch.float8_e5m2).to(torch.float32), 1),
        ("torch cast, BF16", None, lambda: x.to(torch.bfloat16).to(torch.float32), 1),
        (
            "ml_dtypes, E4M3",
            None,
            lambda: array.astype(ml_dtypes.float8_e4m3fn).astype(np.float32),
            1,
        ),
        ("gfloat, E4M3", None, lambda: gfloat.round_ndarray(info, part, sat=True), SLOW),
    ]


def measure(candidates: list[Candidate], repeat: int) -> dict[str, float]:
    """The fastest call of each, in seconds for the whole tensor; the first is the yardstick.

    In a new order each round, because what comes before a call matters to it.
    """
    order, shuffle = list(candidates), random.Random(0).shuffle
    best = {name: float("inf") for name, *_ in candidates}
    for turn in range(repeat):
        shuffle(order)
        for name, _, call, share in order:
            if turn >= 3 and best[name] > 20 * best[candidates[0][0]]:
                continue  # slow enough to know
            start = time.perf_counter()
            result = call()
            best[name] = min(best[name], (time.perf_counter() - start) / share)
            del result
    return best


def main() -> None:
    """Print one line for each candidate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a sixteenth of the work")
    parser.add_argument("--elements", type=int, default=4 * 2**20)
    parser.add_argument("--repeat", type=int, default=25)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    elements = given.elements // 4 if given.quick else given.elements
    repeat = max(given.repeat // 4, 3) if given.quick else given.repeat
    torch.set_num_threads(given.threads)
    x = torch.randn(elements, generator=torch.Generator().manual_seed(0))
    compiled = "compiled kernels" if library() is not None else "no compiler: torch operations"
    print(f"{elements} float32, {given.threads} threads, best of {repeat}; {compiled}")
    print(f"{'':42}{'ms':>9}{'of clone':>10}{'target':>8}")
    clone: Candidate = ("clone", None, lambda: x.clone(), 1)
    # The fast and the slow apart: a slow one empties the caches for the next.
    for group in (ours(x), [*torch_operations(x), *others(x)]):
        best = measure([clone, *group], repeat)
        for name, target, *_ in [clone, *group]:
            ratio = best["clone"] / best[name]
            wanted = "" if target is None else f"{target:.1f}"
            print(f"{name:42}{best[name] * 1e3:9.2f}{ratio:10.3f}{wanted:>8}")
        if "E4M3 counted" in best:
            counted = best["E4M3 nearest"] / best["E4M3 counted"]
            print(f"{'counted, of not counted':42}{'':9}{counted:10.3f}{'0.6':>8}")


if __name__ == "__main__":
    main()
