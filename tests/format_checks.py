"""What the tests of formats share: awkward inputs, and comparing both paths with the reference."""

from __future__ import annotations

import contextlib
import math
import os
import random
import struct
from collections.abc import Iterator
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from altcore.errors import BadInput
from altcore.formats import Format, log_boundary, round_scalar
from altcore.numerics import COUNTS, Meters, Rule, compute_dtype, round_to_grid

ROUNDINGS = ("nearest-even", "nearest-away", "to-zero", "up", "down", "log-nearest")
PATHS = ("torch", "compiled")
HAS_VMAP = torch.__version__ >= "2.13"
"""Whether vmap takes a rounding: an earlier torch cannot view bits under it."""
needs_vmap = pytest.mark.skipif(not HAS_VMAP, reason="torch 2.13 or newer")


@contextlib.contextmanager
def path(name: str) -> Iterator[None]:
    """Round with torch operations, or with the compiled kernels where they apply."""
    before = os.environ.get("ALTCORE_KERNELS")
    os.environ["ALTCORE_KERNELS"] = "off" if name == "torch" else "on"
    try:
        yield
    finally:
        os.environ.pop("ALTCORE_KERNELS")
        if before is not None:
            os.environ["ALTCORE_KERNELS"] = before


def edges(fmt: Format, dtype: torch.dtype = torch.float32, most: int = 1000) -> Tensor:
    """Every value, boundary and limit of a format, arithmetic and geometric mean, each with its
    two neighbours.

    Of a format with more than ``most`` values, the outermost, the innermost and a sample.
    """
    last = len(fmt.values) - 1
    chosen = range(last)
    if last > most:
        tenth, middle = most // 10, last // 2
        ends = [*range(tenth), *range(last - tenth, last), *range(middle - tenth, middle + tenth)]
        chosen = [*ends, *random.Random(5).sample(chosen, most - len(ends))]
    numbers = {*fmt.beyond, *fmt.limits, Fraction(fmt.values[0]), Fraction(fmt.values[-1])}
    geometric = {_signed_root(log_boundary(fmt, i)) for i in (0, last + 1)}
    for i in chosen:
        low, high = Fraction(fmt.values[i]), Fraction(fmt.values[i + 1])
        numbers |= {low, (low + high) / 2, fmt.boundaries[i]}
        geometric.add(_signed_root(log_boundary(fmt, i + 1)))
    at = sorted({_float(x) for x in numbers} | geometric)
    at = torch.tensor(at, dtype=torch.float64).to(dtype)
    infinite = torch.full_like(at, torch.inf)
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan], dtype=dtype)
    return torch.cat([at, torch.nextafter(at, infinite), torch.nextafter(at, -infinite), special])


def random_floats(count: int, seed: int = 0) -> Tensor:
    """float32 numbers of random bits: of every size, infinities and NaN included."""
    bits = torch.randint(-(2**31), 2**31, (count,), generator=torch.Generator().manual_seed(seed))
    return bits.to(torch.int32).view(torch.float32)


def all_bfloat16() -> Tensor:
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)


def reference(x: Tensor, fmt: Format, rounding: str = "nearest-even", overflow="saturate"):
    """`round_scalar` of every element, in the dtype in which tensors are rounded to the format."""
    dtype = compute_dtype(x.dtype, fmt)
    single = dtype == torch.float32
    rounded = [round_scalar(v, fmt, rounding, overflow, single=single) for v in x.double().tolist()]
    return torch.tensor(rounded, dtype=torch.float64).to(dtype)


def rules_of(fmt: Format) -> list[str]:
    """The overflow rules that a format can do, ``raise`` aside."""
    codes = {"inf": fmt.inf_codes, "nan": fmt.nan_codes}
    return ["saturate", *(rule for rule, found in codes.items() if found)]


def saturated(x: Tensor, fmt: Format, rounding: str) -> tuple[Tensor, int]:
    """`reference`, and how many finite elements passed the largest or smallest value."""
    rounded, passed = [], 0
    for v in x.double().tolist():
        try:
            rounded.append(round_scalar(v, fmt, rounding, "raise"))
        except BadInput:
            rounded.append(round_scalar(v, fmt, rounding))
            passed += math.isfinite(v)
    dtype = compute_dtype(x.dtype, fmt)
    return torch.tensor(rounded, dtype=torch.float64).to(dtype), passed


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one dtype are the same, bit for bit."""
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.view(whole), b.view(whole))


def differing(got: Tensor, wanted: Tensor) -> Tensor:
    """Where they are not the same numbers bit for bit, sign of zero included; a NaN is a NaN."""
    same = (got == wanted) & (torch.signbit(got) == torch.signbit(wanted))
    return ~(same | (torch.isnan(got) & torch.isnan(wanted)))


def assert_same(got: Tensor, wanted: Tensor, x: Tensor | None = None) -> None:
    """The same numbers, as `differing` compares them."""
    assert got.dtype == wanted.dtype
    if same_bits(got, wanted):  # as nearly always, and several times as fast
        return
    wrong = differing(got, wanted)
    rows = [got, wanted] if x is None else [x, got, wanted]
    assert not wrong.any(), torch.stack([r.double() for r in rows], 1)[wrong][:5].tolist()


def assert_rounds(x: Tensor, fmt: Format, rounding: str = "nearest-even") -> None:
    """Both paths give the reference's values and count its overflows."""
    wanted, passed = saturated(x, fmt, rounding)
    for name in PATHS:
        counts = torch.zeros(len(COUNTS), dtype=torch.int64)
        with path(name):
            assert_same(round_to_grid(x, fmt, Rule(rounding)), wanted, x)
            assert_same(round_to_grid(x, fmt, Rule(rounding), meters=Meters(counts)), wanted, x)
        assert counts[COUNTS.index("overflow")] == passed, (name, rounding)


def _float(x: Fraction) -> float:
    try:
        return float(x)
    except OverflowError:
        return math.inf if x > 0 else -math.inf


def _signed_root(x: Fraction) -> float:
    """The root of the magnitude, as good as float64 has it, with the sign."""
    exponent = (x.numerator.bit_length() - x.denominator.bit_length()) // 2
    try:
        root = math.ldexp(math.sqrt(abs(x) / Fraction(4) ** exponent), exponent)
    except OverflowError:
        root = math.inf
    return -root if x < 0 else root


def single(value: float) -> float:
    """Round to float32."""
    return struct.unpack("<f", struct.pack("<f", value))[0]
