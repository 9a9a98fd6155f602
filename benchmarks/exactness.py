"""``make exactness``: every rounding against independent oracles, both paths; the mismatches.

    python benchmarks/exactness.py [--quick] [--markdown docs/exactness.md]

Three tables: rounding to nearest against ml_dtypes, gfloat and the scalar reference; the other
roundings; stochastic rounding. With ``--markdown`` they replace what that file has between its two
markers. The exit status is 1 if anything differs.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path

import torch
from tables import Table, options, printed, replace
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # which has the oracles

import oracles
from format_checks import all_bfloat16, differing, edges, path, random_floats, reference, same_bits

from altcore import BlockFormat, Format, decode, get_format
from altcore.numerics import Rule, fake_blocks, round_blocks, round_to_grid
from altcore.numerics.kernels import kernel_block_rounder, kernel_rounder, reads
from altcore.registry import entries

WAYS = ("compiled", "torch", "CUDA")
"""The kernels; torch operations on the CPU, and on a GPU."""

CHUNK = 1 << 16  # numbers that are rounded at once: they fit into a cache
NONE = "–"
ORACLE = ("codes", "edges", "16-bit", "random")
ROUNDINGS = ("nearest-away", "to-zero", "up", "down", "log-nearest")
SAMPLED = (
    *("E4M3", "E5M2", "E3M4", "E2M1", "E0M7", "E1M6", "E7M0", "E8M0", "E4M3FNUZ", "binary8p3se"),
    *("FP16", "INT8", "Q1_6", "posit8_1", "LOG4_3-by-log", "NF4", "TERNARY"),
)
"""Formats of every kind, whose other roundings are compared."""

DRAWN = (
    *("E4M3", "E5M2", "E3M4", "E2M1", "E0M7", "E7M0", "E4M3FNUZ", "binary8p3se", "BF16"),
    *("INT8", "posit8_1", "LOG4_3-by-log", "NF4"),
)
"""Formats of every kind that are rounded stochastically."""

SHARES = (2**-10, 0.01, 0.1, 0.25, 1 / 3, 0.5, 0.75, 0.9, 0.99, 1 - 2**-10)
ERROR = 1e-3  # the probability that a right implementation misses a row of the third table


@dataclass(frozen=True)
class Effort:
    """How much is compared."""

    edges: int  # values of a format beyond which it is sampled
    stride: int  # of all 16-bit numbers
    random: int  # float32 bit patterns, for the fast oracles
    slow: int  # and for the scalar reference
    draws: int  # of each number that is rounded stochastically
    backend: str  # of torch.compile


FULL = Effort(1 << 16, 1, 1 << 24, 1 << 18, 1 << 20, "inductor")
QUICK = Effort(100, 61, 1 << 10, 1 << 8, 1 << 12, "eager")


@dataclass
class Tally:
    """What a comparison came to."""

    inputs: Counter[str] = field(default_factory=Counter)
    replaced: Counter[str] = field(default_factory=Counter)  # by definition, for each rule
    wrong: Counter[str] = field(default_factory=Counter)  # in each way
    shown: list[str] = field(default_factory=list)  # the first ones

    def rules(self) -> str:
        """By which rules the oracle's results were replaced."""
        return ", ".join(rule for rule, n in self.replaced.items() if n)

    def add(self, way: str, name: str, x: Tensor, got: Tensor, wanted: Tensor) -> None:
        """Count the mismatches of one way."""
        if got.dtype == wanted.dtype and same_bits(got, wanted):
            return
        where = differing(got, wanted)
        count = int(where.sum())
        self.wrong[way] += count
        if count and len(self.shown) < 3:
            each = (float(t.flatten()[where.flatten()][0]).hex() for t in (x, got, wanted))
            self.shown.append("{}, {}: {} became {}, not {}.".format(name, way, *each))


Result = tuple[Table, int]
"""A table, and how many mismatches it tells of."""


# ---------------------------------------------------------------------------------- the ways


def ways(fmt: Format | BlockFormat, rounding: str = "nearest-even") -> list[str]:
    """Those in which ``fmt`` can be rounded here."""
    rounder = kernel_block_rounder if isinstance(fmt, BlockFormat) else kernel_rounder
    with path("compiled"):
        has_kernel = reads(torch.ones(1, 32)) and rounder(fmt, Rule(rounding)) is not None
    has = {"compiled": has_kernel, "torch": True, "CUDA": torch.cuda.is_available()}
    return [way for way in WAYS if has[way]]


def run(way: str, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function(x)`` in one of `WAYS`, on the CPU again."""
    with path("compiled" if way == "compiled" else "torch"):
        return function(x.cuda() if way == "CUDA" else x).cpu()


# -------------------------------------------------------------------------------- the inputs


@cache
def edges_of(fmt: Format, most: int) -> Tensor:
    """Every value and boundary of a format with its neighbours, one float32 ULP away."""
    return edges(fmt, most=most)


def sixteen_bits(stride: int) -> list[Tensor]:
    """All numbers of bfloat16 and float16, or some of them."""
    numbers = all_bfloat16()[::stride]
    return [numbers, numbers.view(torch.float16)]


def inputs(fmt: Format, effort: Effort, random: int) -> Iterator[tuple[str, Tensor]]:
    """What is rounded to a format, by the columns of the first table."""
    for part in edges_of(fmt, effort.edges).split(CHUNK):
        yield "edges", part
    for numbers in sixteen_bits(effort.stride):
        yield "16-bit", numbers
    for seed in range(-(-random // CHUNK)):
        yield "random", random_floats(min(CHUNK, random), seed)


def windowed(count: int, length: int, seed: int) -> Tensor:
    """Rows of random float32 bit patterns whose exponents are within 20 of another."""
    g = torch.Generator().manual_seed(seed)
    mantissa = torch.randint(0, 1 << 23, (count, length), generator=g)
    exponent = torch.randint(0, 235, (count, 1), generator=g)
    exponent = exponent + torch.randint(0, 20, (count, length), generator=g)
    sign = torch.randint(0, 2, (count, length), generator=g)
    bits = mantissa + (exponent << 23) - (sign << 31)
    return bits.to(torch.int32).view(torch.float32)


def in_order(x: Tensor) -> Tensor:
    """Those numbers that are finite by magnitude, and then the others."""
    return x[torch.where(torch.isfinite(x), x.float().abs(), torch.inf).argsort(stable=True)]


def of_edges(fmt: BlockFormat, length: int) -> Tensor:
    """Blocks whose scale is made by each edge of the element, and blocks with all edges in them."""
    at = edges_of(fmt.element, 1000)
    at = at[torch.isfinite(at)]
    g = torch.Generator().manual_seed(0)
    largest = (torch.rand(len(at), length, generator=g) * 2 - 1) * at[:, None]
    largest[:, 0] = at
    within = at[at.abs() <= fmt.element.max]
    within = torch.nn.functional.pad(within, (0, -len(within) % (length - 1)))
    within = torch.nn.functional.pad(within.view(-1, length - 1), (1, 0), value=fmt.element.max)
    blocks = torch.cat([largest, within])
    if fmt.scale_format is not None:  # every scale there is, in a tensor whose own scale is 1
        scales = torch.tensor([v for v in fmt.scale_format.values if v > 0])
        blocks = (within[None] * scales[:, None, None]).view(-1, length)
        return torch.cat([blocks, torch.full((1, length), fmt.largest)])
    return torch.cat([blocks * 2.0**k for k in (-100, -20, 0, 20, 100)])


def block_inputs(fmt: BlockFormat, effort: Effort, random: int) -> Iterator[tuple[str, Tensor]]:
    """Tensors whose rows are blocks. Under a two-level format, many whose ranges differ."""
    length = fmt.block**2 if fmt.is_square else fmt.block
    yield "edges", of_edges(fmt, length)[:: effort.stride]
    for numbers in sixteen_bits(1):
        blocks = in_order(numbers).view(-1, length)
        if fmt.scale_format is None:
            yield "16-bit", blocks[:: effort.stride]
        else:
            for part in blocks.split(4096 // length)[:: effort.stride]:
                yield "16-bit", part
    for seed in range(-(-random // CHUNK)):
        x = windowed(CHUNK // length, length, seed)
        if fmt.scale_format is not None:
            x = windowed(1, CHUNK, seed).view(-1, length)
        yield "random", x[: max(random // length, 1)]


# ---------------------------------------------------------------- the first table: to nearest

Wanted = tuple[Tensor, dict[str, int]]
"""What an oracle says, in altcore's definition; and how many results that replaced, by rule."""


@dataclass(frozen=True)
class Oracle:
    """One that says what numbers become, and the codes' values if it knows them."""

    name: str
    others: tuple[str, ...]  # of `ROUNDINGS`
    overflows: tuple[str, ...]
    rounded: Callable[[Tensor, str, str], Wanted]  # numbers, rounding, overflow
    codes: list[float] | None = None
    is_slow: bool = False


def by_ml_dtypes(fmt: Format, dtype: type) -> Oracle:
    """Which overflows to infinity, else to NaN, else to the largest value."""
    least = oracles.SMALLEST_NORMAL  # E8M0 takes all of float32's subnormal numbers up there

    def rounded(x: Tensor, rounding: str, overflow: str) -> Wanted:
        theirs = oracles.ml_rounded(x, dtype)
        return oracles.by_definition(x, theirs, fmt, rounding, overflow, least)

    overflow = oracles.overflow_of(fmt)
    return Oracle("ml_dtypes", (), (overflow,), rounded, oracles.ml_codes(fmt, dtype))


def by_gfloat(fmt: Format, info: object) -> Oracle:
    """Which saturates if told to."""

    def rounded(x: Tensor, rounding: str, overflow: str) -> Wanted:
        theirs = oracles.gfloat_rounded(x, info, rounding, saturate=overflow == "saturate")
        return oracles.by_definition(x, theirs, fmt, rounding, overflow, fmt.smallest)

    overflows = tuple(dict.fromkeys(("saturate", oracles.overflow_of(fmt))))
    others = tuple(r for r in ROUNDINGS if r in oracles.GFLOAT_ROUNDINGS)
    return Oracle("gfloat", others, overflows, rounded, oracles.gfloat_codes(fmt, info))


def by_reference(fmt: Format) -> Oracle:
    """Of altcore's own, in exact arithmetic: for the formats that nobody else has."""
    return Oracle(
        "altcore.formats.reference",
        ROUNDINGS,
        ("saturate",),
        lambda x, rounding, overflow: (reference(x, fmt, rounding, overflow), {}),
        is_slow=True,
    )


def compared(fmt: Format, oracle: Oracle, effort: Effort) -> Tally:
    """All inputs in all ways."""
    tally, there = Tally(), ways(fmt)
    if oracle.codes is not None:
        ours = decode(torch.arange(len(oracle.codes)), fmt)
        theirs = torch.tensor(oracle.codes, dtype=torch.float64).to(ours.dtype)
        tally.inputs["codes"] = len(ours)
        tally.add("torch", f"{fmt}: codes", torch.arange(len(ours)), ours, theirs)
    for kind, x in inputs(fmt, effort, effort.slow if oracle.is_slow else effort.random):
        for overflow in oracle.overflows:
            wanted, replaced = oracle.rounded(x, "nearest-even", overflow)
            tally.inputs[kind] += len(x)
            tally.replaced.update(replaced)
            for way in there:
                got = run(way, partial(round_to_grid, rule=Rule(overflow=overflow), fmt=fmt), x)
                tally.add(way, f"{fmt}: {oracle.name}", x, got, wanted)
    return tally


def in_blocks(fmt: BlockFormat, effort: Effort) -> Tally:
    """The same of a block format: its values, and what they are back in float32."""
    tally, there = Tally(), ways(fmt)
    for kind, x in block_inputs(fmt, effort, effort.random // 16):
        if fmt.scale_format is None:
            wanted, replaced = oracles.mx_rounded(x, fmt)
            back = wanted
        else:
            (wanted, g), replaced = oracles.nvfp4_rounded(x), {}
            back = wanted * g
        tally.inputs[kind] += x.numel()
        tally.replaced.update(replaced)
        shape = (-1, fmt.block) if fmt.is_square else x.shape
        given = x.reshape(shape)
        for way in there:
            got = run(way, lambda t: round_blocks(t, fmt).values, given).view(x.shape)
            tally.add(way, fmt.name, x, got, wanted)
            if x.dtype == torch.float32:
                got = run(way, lambda t: fake_blocks(t, fmt), given).view(x.shape)
                tally.add(way, f"{fmt}, there and back", x, got, back)
    return tally


def cells(tally: Tally, there: Sequence[str]) -> list[str]:
    """The numbers of a row of the first table."""
    counts = [f"{tally.inputs[k]:,}" if tally.inputs[k] else NONE for k in ORACLE]
    replaced = sum(tally.replaced.values())
    wrong = [f"{tally.wrong[way]:,}" if way in there else NONE for way in WAYS]
    return [*counts, f"{replaced:,}" if replaced else NONE, *wrong]


def formats(kind: type) -> list[str]:
    """First-party names, and of each family those that are tested."""
    own = [e for e in entries() if e.kind == "format" and e.distribution == "altcore-formats"]
    names = [e.name for e in own if not e.is_family]
    names += itertools.chain.from_iterable(oracles.FAMILIES.values())
    return [name for name in sorted(names) if isinstance(get_format(name), kind)]


def all_oracles() -> Iterator[tuple[Format, Oracle]]:
    """Each format with each of its oracles."""
    for name, dtype in oracles.ML_DTYPES.items():
        yield get_format(name), by_ml_dtypes(get_format(name), dtype)
    for name, info in oracles.GFLOAT.items():
        yield get_format(name), by_gfloat(get_format(name), info)
    for name in formats(Format):
        yield get_format(name), by_reference(get_format(name))


def to_nearest(effort: Effort) -> Result:
    """The first table."""
    rows, found = [], []
    for fmt, oracle in all_oracles():
        found.append(compared(fmt, oracle, effort))
        rules = [f"overflow to {o}" for o in oracle.overflows if o != "saturate"]
        words = ", ".join(filter(None, [found[-1].rules(), *rules]))
        rows.append((f"{fmt}: {oracle.name}", *cells(found[-1], ways(fmt)), words))
    for fmt in map(get_format, formats(BlockFormat)):
        found.append(in_blocks(fmt, effort))
        by = "gfloat" if fmt.rule == "floor" else f"gfloat, scale by {fmt.rule}"
        by = by if fmt.scale_format is None else "definition, ml_dtypes"
        rows.append((f"{fmt}: {by}", *cells(found[-1], ways(fmt)), found[-1].rules()))
    head = ("", *ORACLE, "by definition", *(f"wrong, {way}" for way in WAYS), "what differs")
    table, wrong = finished("To nearest", head, rows, found)
    packages = ("torch", "ml_dtypes", "gfloat", "numpy")
    table.notes.append(", ".join(f"{name} {version(name)}" for name in packages) + ".")
    return table, wrong


# ------------------------------------------------------------------------- the second table


def by_others(fmt: Format, oracle: Oracle, effort: Effort) -> tuple[tuple[str, ...], Tally]:
    """A row of the second table."""
    xs = [*edges_of(fmt, min(effort.edges, 2000)).split(CHUNK), *sixteen_bits(effort.stride)]
    xs.append(random_floats(effort.slow // 2))
    tally, wrong = Tally(), dict.fromkeys(ROUNDINGS, NONE)
    for rounding in oracle.others:
        before = tally.wrong.total()
        for x in xs:
            wanted, replaced = oracle.rounded(x, rounding, "saturate")
            tally.inputs[rounding] += len(x)
            tally.replaced.update(replaced)
            for way in ways(fmt, rounding):
                got = run(way, partial(round_to_grid, rule=Rule(rounding), fmt=fmt), x)
                tally.add(way, f"{fmt}, {rounding}: {oracle.name}", x, got, wanted)
        wrong[rounding] = f"{tally.wrong.total() - before:,}"
    replaced = f"{tally.replaced.total():,}" if tally.replaced.total() else NONE
    cells = (f"{sum(map(len, xs)):,}", replaced, *wrong.values(), tally.rules())
    return (f"{fmt}: {oracle.name}", *cells), tally


def other_roundings(effort: Effort) -> Result:
    """The second table: mismatches of all ways together, by rounding."""
    rows, found = [], []
    for fmt in map(get_format, SAMPLED):
        info = oracles.GFLOAT.get(str(fmt))
        for oracle in (by_reference(fmt), *([by_gfloat(fmt, info)] if info else [])):
            row, tally = by_others(fmt, oracle, effort)
            rows.append(row)
            found.append(tally)
    head = ("", "inputs", "by definition", *(f"wrong, {r}" for r in ROUNDINGS), "what differs")
    return finished("Other roundings", head, rows, found)


# -------------------------------------------------------------------------- the third table


def points(fmt: Format) -> list[tuple[float, float, float]]:
    """Numbers to draw from, each with its two neighbours: small, large and negative ones."""
    last = len(fmt.values) - 2
    least = fmt.index_of(fmt.smallest)
    found = []
    for i in sorted(
        {min(max(i, 0), last) for i in (0, least - 1, least, (least + last) // 2, last)}
    ):
        low, high = fmt.values[i : i + 2]
        for share in SHARES:
            x = torch.tensor(low + share * (high - low)).item()
            if low < x < high:
                found.append((x, low, high))
    return found


def evidence(seen: float, p: float, n: int) -> float:
    """Chernoff: exp of minus this bounds the probability of a share as far off, on that side."""
    parts = ((seen, p), (1 - seen, 1 - p))
    return n * sum(a * math.log(a / b) for a, b in parts if a)


def drawn(fmt: Format, effort: Effort, limit: float, first: int) -> tuple[list[str], Tally]:
    """The numbers of a row of the third table; with a key for each draw, from ``first`` on."""
    chosen, tally = points(fmt), Tally()
    x, low, high = torch.tensor(chosen).unbind(1)
    x = x[:, None].expand(-1, min(effort.draws, CHUNK)).contiguous()
    shares = [Fraction(a - b) / Fraction(c - b) for a, b, c in chosen]
    torch._dynamo.reset()

    def rounded(t: Tensor, key: Tensor) -> Tensor:
        return round_to_grid(t, fmt, Rule("stochastic"), key=key.to(t.device))

    compiled = torch.compile(rounded, backend=effort.backend, fullgraph=True, dynamic=False)
    others = [way for way in ways(fmt, "stochastic") if way != "torch"]
    up, keys = torch.zeros(len(chosen), dtype=torch.int64), effort.draws // x.shape[1]
    for turn in range(keys + 1):
        # At last any numbers, of which only the bits are compared.
        y = x if turn < keys else random_floats(x.numel()).view(x.shape)
        key = torch.tensor(first + turn)
        eager = run("torch", partial(rounded, key=key), y)
        for way in others:
            tally.add(way, f"{fmt}, stochastic", y, run(way, partial(rounded, key=key), y), eager)
        tally.add("torch.compile", f"{fmt}, stochastic", y, compiled(y, key), eager)
        if turn < keys:
            is_up = eager == high[:, None]
            tally.wrong["neither"] += int((~is_up & (eager != low[:, None])).sum())
            up += is_up.sum(1)
    n = keys * x.shape[1]
    seen = [count / n for count in up.tolist()]
    pairs = [(s, float(p)) for s, p in zip(seen, shares, strict=True)]
    errors = [abs(s - p) / math.sqrt(p * (1 - p) / n) for s, p in pairs]
    off = max(evidence(s, p, n) for s, p in pairs)
    tally.inputs["tests"] = len(chosen)
    tally.wrong["mean"] += off > limit
    there = [*others, "torch.compile"]
    wrong = [
        f"{tally.wrong[way]:,}" if way in there else NONE
        for way in ("compiled", "torch.compile", "CUDA")
    ]
    cells = [f"{len(chosen)} × {n:,}", f"{max(errors):.2f}", f"{off:.1f}"]
    return [*cells, f"{tally.wrong['neither']:,}", *wrong], tally


def stochastic(effort: Effort) -> Result:
    """The third table."""
    tests = sum(len(points(get_format(name))) for name in DRAWN)
    limit = math.log(2 * tests / ERROR)
    rows, found = [], []
    for i, fmt in enumerate(map(get_format, DRAWN)):
        numbers, tally = drawn(fmt, effort, limit, first=1000 * i)
        found.append(tally)
        rows.append((str(fmt), *numbers, "missed" if tally.wrong.total() else "met"))
    head = ("", "numbers × draws", "standard errors", "evidence", "neither neighbour")
    head = (*head, "wrong, compiled", "wrong, torch.compile", "wrong, CUDA", "")
    notes = [
        f"{tests} tests. Evidence of {limit:.1f} or more in one of them misses: independent draws "
        f"of the exact probability do that in the whole table with a probability of at most "
        f"{ERROR:g}."
    ]
    if effort.backend != "inductor":
        notes.append(f"torch.compile by its backend {effort.backend}.")
    return finished("Stochastic rounding", head, rows, found, notes)


def finished(
    title: str,
    head: tuple[str, ...],
    rows: list[tuple[str, ...]],
    found: list[Tally],
    notes: Sequence[str] = (),
) -> Result:
    """A table, with its sums and the first mismatches under it; and how many there are."""
    inputs = sum(t.inputs.total() for t in found)
    wrong = sum(t.wrong.total() for t in found)
    shown = [line for tally in found for line in tally.shown][:20]
    notes = notes or [f"{inputs:,} comparisons in each way; mismatches: {wrong:,}."]
    return Table(title, head, rows, [*notes, *shown]), wrong


def main() -> None:
    """Print the tables; exit with 1 if anything differs."""
    given = options(__doc__).parse_args()
    effort, wrong = QUICK if given.quick else FULL, []

    def tables() -> Iterator[Table]:
        for make in (to_nearest, other_roundings, stochastic):
            table, count = make(effort)
            wrong.append(count)
            yield table

    made = printed(tables())
    if given.quick:
        print("\n--quick: a small part of the inputs.")
    print(f"\nMismatches: {sum(wrong):,}.")
    if given.markdown is not None:
        replace(given.markdown, made)
    sys.exit(1 if any(wrong) else 0)


if __name__ == "__main__":
    main()
