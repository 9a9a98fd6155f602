"""Rounding tensors: any format, any rounding, against the scalar reference and by law.

The formats that altcore-formats brings are compared with ml_dtypes and gfloat in
tests/plugins/formats/test_zoo.py; here formats are drawn at random.
"""

import itertools
import math
from fractions import Fraction

import gfloat
import pytest
import torch
from drawn_formats import float_formats, table_formats
from format_checks import (
    PATHS,
    all_bfloat16,
    assert_same,
    edges,
    path,
    random_floats,
    reference,
    rules_of,
)
from grid_formats import ALL, BF16, CLOSE, E0M7, E1M6, E3M4, E4M3, E7M0, FP16, NF, POSITIVE
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import GFLOAT_ROUNDINGS

from altcore.errors import BadInput
from altcore.formats import ROUNDINGS, code_format, float_format, round_scalar, table_format
from altcore.numerics import (
    COUNTS,
    Meters,
    Rule,
    amax,
    compute_dtype,
    fake_round,
    round_to_grid,
    scale_of,
)
from altcore.numerics.hashing import random_bits
from altcore.numerics.rounding_constants import float_constants

DEFINITE = [r for r in ROUNDINGS if r != "stochastic"]
BY_NAME = {"argvalues": ALL, "ids": str}


def numbers_for(fmt, seed, dtype):
    """Edges of the format, numbers about as large as its values, and random bit patterns."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.randn(60, generator=generator, dtype=torch.float64) * fmt.max
    small = torch.randn(30, generator=generator, dtype=torch.float64) * fmt.smallest
    return torch.cat(
        [edges(fmt, dtype, most=60), spread.to(dtype), small.to(dtype), random_floats(60).to(dtype)]
    )


def uniforms(x, fmt, key):
    """What `round_scalar` needs to draw what the tensor path draws: the number and a uniform."""
    dtype = compute_dtype(x.dtype, fmt)
    noise = (random_bits(x.shape, key, x.device).long() & 0xFFFFFFFF).tolist()
    for value, h in zip(x.to(dtype).tolist(), noise, strict=True):
        if fmt.precision is None or not math.isfinite(value):
            yield value, Fraction(2 * ((h ^ 0xFFFFFFFF) >> 9) + 1, 2**24)
            continue
        plan = float_constants(fmt, dtype)
        cut = plan.cut
        if abs(value) < plan.least:
            lifted = torch.tensor(abs(value), dtype=dtype) + plan.least
            value, cut = math.copysign(lifted.item() - plan.least, value), plan.gap_cut
        more = h >> (32 - cut) if cut <= 32 else (h << (cut - 32)) + (1 << (cut - 33))
        yield value, 1 - Fraction(2 * more + 1, 2 ** (cut + 1))


def slow_counts(x, fmt, rounding):
    """The counts by the reference, one element at a time."""
    tally = dict.fromkeys(COUNTS, 0)
    single = compute_dtype(x.dtype, fmt) == torch.float32
    for v in x.double().flatten().tolist():
        tally["elements"] += 1
        if not math.isfinite(v):
            tally["nonfinite"] += 1
            continue
        try:
            q = round_scalar(v, fmt, rounding, "raise", single=single)
        except BadInput:
            tally["overflow"] += 1
            continue
        tally["flushed"] += v != 0 and q == 0
    return list(tally.values())


# ------------------------------------------------------------------------------- the reference


@settings(max_examples=60)
@given(
    float_formats | table_formats(),
    st.sampled_from(DEFINITE),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    st.integers(0, 2**31),
)
def test_random_formats_round_as_the_reference(fmt, rounding, dtype, seed):
    """Both paths, each overflow rule that the format has, and the counts."""
    x = numbers_for(fmt, seed, dtype)
    for overflow in rules_of(fmt):
        wanted = reference(x, fmt, rounding, overflow)
        for way in PATHS:
            counts = torch.zeros(len(COUNTS), dtype=torch.int64)
            with path(way):
                got = round_to_grid(x, fmt, Rule(rounding, overflow))
                counted = round_to_grid(x, fmt, Rule(rounding, overflow), meters=Meters(counts))
            assert_same(got, wanted, x)
            assert_same(counted, wanted, x)
            assert counts.tolist() == slow_counts(x, fmt, rounding)


@pytest.mark.parametrize("share", [None, 0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_that_float32_does_not_hold(dtype, share):
    """Of either side of their float32s, also where rounding changes at a value itself."""
    values = [-7.580418866586493, -6.806624657946861, 0.1, 1 / 3, 0.7, 2.2]
    fmt = table_format("unheld", values)
    if share is not None:
        grid = [fmt.beyond[0], *map(Fraction, values), fmt.beyond[1]]
        points = [a + share * (b - a) for a, b in itertools.pairwise(grid)]
        fmt = code_format("unheld", values, boundaries=points)
    x = edges(fmt, dtype)
    for rounding, way in itertools.product(DEFINITE, PATHS):
        with path(way):
            assert_same(round_to_grid(x, fmt, Rule(rounding)), reference(x, fmt, rounding), x)


@settings(max_examples=30)
@given(
    float_formats | table_formats(),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.integers(0, 2**40),
)
def test_stochastic_rounding_is_the_reference_with_the_hash(fmt, dtype, key):
    """Given an element's random bits, stochastic rounding is a definite thing too."""
    x, grid = numbers_for(fmt, key % 1000, dtype), compute_dtype(dtype, fmt)
    for overflow in rules_of(fmt):
        drawn = [
            round_scalar(v, fmt, "stochastic", overflow, u, single=grid == torch.float32)
            for v, u in uniforms(x, fmt, key)
        ]
        wanted = torch.tensor(drawn, dtype=torch.float64).to(grid)
        for way in PATHS:
            with path(way):
                got = round_to_grid(x, fmt, Rule("stochastic", overflow), key=key)
            assert_same(got + 0.0, wanted + 0.0, x)


def described(fmt):
    """A float format as gfloat describes one."""
    e, m = fmt.exponent_bits, fmt.mantissa_bits
    return (
        gfloat.FormatInfo(
            fmt.name,
            fmt.bits,
            m + 1,
            bias=fmt.bias,
            is_signed=True,
            domain=gfloat.Domain.Extended if fmt.specials == "ieee" else gfloat.Domain.Finite,
            has_nz=True,
            num_high_nans={"none": 0, "fn": 1, "ieee": 2**m - 1}[fmt.specials],
            has_subnormals=fmt.subnormals,
            is_twos_complement=False,
        )
        if e
        else None
    )


@pytest.mark.parametrize(
    "shape", [(1, 6), (2, 5), (3, 4), (4, 3), (5, 2), (6, 1), (7, 0), (2, 1), (2, 3), (3, 2)]
)
def test_bare_exmy_against_gfloat(shape):
    """Independently of the reference: every code, and every midpoint and its neighbours."""
    fmt = float_format("E{}M{}".format(*shape), *shape)
    info = described(fmt)
    codes = [gfloat.decode_float(info, c).fval for c in range(2**fmt.bits)]
    assert codes == list(fmt.code_values)
    x = edges(fmt)
    x = x[torch.isfinite(x)][::3]
    for rounding, mode in GFLOAT_ROUNDINGS.items():
        wanted = [gfloat.round_float(info, v, mode, sat=True) for v in x.tolist()]
        for way in PATHS:
            with path(way):
                got = round_to_grid(x, fmt, Rule(rounding))
            assert_same(got + 0.0, torch.tensor(wanted) + 0.0, x)


# ------------------------------------------------------------------------------------ by law


@pytest.mark.parametrize("fmt", **BY_NAME)
@pytest.mark.parametrize("way", PATHS)
def test_grid_values_stay(fmt, way):
    """At a fixed scale rounding is idempotent, whatever the rounding."""
    x = torch.tensor(fmt.values)
    with path(way):
        for rounding in ROUNDINGS:
            assert_same(round_to_grid(x, fmt, Rule(rounding), key=1), x)


@pytest.mark.parametrize("fmt", [f for f in ALL if f not in (NF, POSITIVE, CLOSE)], ids=str)
@pytest.mark.parametrize("way", PATHS)
def test_symmetric_formats_round_symmetrically(fmt, way):
    """Q(-x) is -Q(x), for equal random bits too; up mirrors down."""
    x = torch.cat([edges(fmt), random_floats(500)])
    x = x[x != 0] if 0.0 not in fmt.values else x
    mirrored = {"up": "down", "down": "up"}
    with path(way):
        for rounding in ROUNDINGS:
            other = mirrored.get(rounding, rounding)
            negative = round_to_grid(-x, fmt, Rule(other), key=4)
            assert_same(round_to_grid(x, fmt, Rule(rounding), key=4), -negative, x)


@pytest.mark.parametrize("fmt", **BY_NAME)
@pytest.mark.parametrize("way", PATHS)
def test_monotone(fmt, way):
    x = torch.cat([edges(fmt), random_floats(2000)])
    x = x[~torch.isnan(x)].sort().values
    with path(way):
        for rounding in DEFINITE:
            assert (round_to_grid(x, fmt, Rule(rounding)).diff() >= 0).all()


@pytest.mark.parametrize("scaling", [{}, {"power_of_two": True}])
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("way", PATHS)
def test_e1m6_is_e0m7(way, rounding, scaling):
    """With subnormals E1M6's grid is E0M7's times 4: under tensor scaling the same, bit for bit."""
    x = torch.randn(5000, generator=torch.Generator().manual_seed(2)) ** 3
    results = []
    with path(way):
        for fmt in (E0M7, E1M6):
            s, r = scale_of(amax(x), fmt, **scaling)
            counts = torch.zeros(4, dtype=torch.int64)
            y = fake_round(x, fmt, Rule(rounding), r=r, s=s, key=9, meters=Meters(counts))
            results.append((y, counts))
    assert_same(results[0][0], results[1][0])
    assert results[0][1].tolist() == results[1][1].tolist()


@pytest.mark.parametrize("way", PATHS)
def test_signs_of_zero_and_nan(way):
    x = torch.tensor([0.0, -0.0, 1e-30, -1e-30, math.nan, -math.inf])
    with path(way):
        for fmt in (E4M3, E7M0, NF):
            q = round_to_grid(x, fmt)
            assert torch.signbit(q)[:4].tolist() == [False, True, False, True]
            assert torch.isnan(q).tolist() == [False] * 4 + [True, False]
            assert q[5] == -fmt.max


def test_float64_is_rounded_once():
    """1.0625 + 2^-40 lies above a tie of E3M4 + its float32 rounding lies on it."""
    x = torch.tensor([1.03125 + 2.0**-40, -1.03125 - 2.0**-40], dtype=torch.float64)
    assert round_to_grid(x, E3M4).tolist() == [1.0625, -1.0625]
    assert round_to_grid(x.float(), E3M4).tolist() == [1.0, -1.0]
    assert round_to_grid(x, E3M4).dtype == torch.float64


@pytest.mark.parametrize("way", PATHS)
def test_every_half_precision_number(way):
    """float16 and bfloat16 round like the float32s they are."""
    halves = (all_bfloat16(), all_bfloat16().view(torch.float16))
    with path(way):
        for x in halves:
            for fmt in (E3M4, E4M3, E7M0, BF16, NF):
                assert_same(round_to_grid(x, fmt), round_to_grid(x.float(), fmt), x)


@pytest.mark.parametrize("way", PATHS)
def test_the_product_with_the_scale_is_rounded_once(way):
    """Also to 16 bits: the exact q · s goes to the nearest bfloat16 or float16, ties to even."""
    generator = torch.Generator().manual_seed(3)
    for dtype in (torch.bfloat16, torch.float16):
        x = torch.randn(120, generator=generator).to(dtype)
        grid = BF16 if dtype is torch.bfloat16 else FP16
        # The last two scales put exact products on and next to the 16-bit midpoints.
        for scale in (0.3, 1e-5, 1 + 2**-8, (1 + 2**-8) * (1 + 2**-15)):
            s = torch.tensor(scale)
            r = 1 / s
            with path(way):
                got = fake_round(x, E4M3, r=r, s=s)
                q = round_to_grid(x, E4M3, r=r)
            exact = [Fraction(v) * Fraction(s.item()) for v in q.tolist()]
            wanted = torch.tensor([round_scalar(v, grid) for v in exact]).to(dtype)
            assert got.dtype == dtype
            assert (got == wanted).all()


# ----------------------------------------------------------------- tensors of every description


@pytest.mark.parametrize("way", PATHS)
@pytest.mark.parametrize("rounding", ["nearest-even", "stochastic"])
def test_layout_does_not_matter(way, rounding):
    """Strides, expansion, zero sizes and dimensions: the result is that of the logical order."""
    x = torch.randn(6, 8, 10, generator=torch.Generator().manual_seed(0))
    views = [
        x.permute(2, 0, 1),
        x[::2, :, 1::3],
        x[1:2].expand(4, 8, 10),
        x[0, 0, 0],
        x[:0],
        x.flip(0),
        x.to(memory_format=torch.contiguous_format)[:, None].unsqueeze(-1),
    ]
    with path(way):
        for view in views:
            counts = torch.zeros(2, 4, dtype=torch.int64)
            kinds = {"rule": Rule(rounding), "key": 5}
            got = round_to_grid(view, E4M3, **kinds, meters=Meters(counts[0]))
            straight = view.contiguous().clone().flatten()
            wanted = round_to_grid(straight, E4M3, **kinds, meters=Meters(counts[1]))
            assert got.shape == view.shape
            assert_same(got.flatten(), wanted)
            assert counts[0].tolist() == counts[1].tolist()
            assert amax(view) == (straight.abs().max() if straight.numel() else 0)


@pytest.mark.parametrize("way", PATHS)
def test_factors_that_broadcast(way):
    """A factor for the tensor, for each row, each column and each element."""
    x = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))
    with path(way):
        for shape in ((), (1,), (4, 1, 1), (6, 1), (1, 6, 1), (8,), (4, 6, 1), (4, 6, 8)):
            r = torch.rand(shape, generator=torch.Generator().manual_seed(1)) + 0.5
            s = 1 / r
            for dtype in (torch.float32, torch.bfloat16):
                y = x.to(dtype)
                scaled = y.float() * r
                q = round_to_grid(y, E4M3, r=r)
                assert_same(q, round_to_grid(scaled, E4M3))
                fake = fake_round(y, E4M3, r=r, s=s)
                wanted = (q.double() * s.double()).to(torch.float32)
                assert_same(fake.float(), wanted if dtype == torch.float32 else fake.float())
                assert ((fake.float() - wanted).abs() <= wanted.abs() * 2.0**-8).all()


@pytest.mark.parametrize("way", PATHS)
def test_overflow_that_raises(way):
    with path(way):
        assert round_to_grid(torch.tensor([464.0]), E4M3, Rule(overflow="raise")) == 448
        with pytest.raises(BadInput, match=r"2 value\(s\) overflow format E4M3"):
            round_to_grid(torch.tensor([464.0, 465.0, -math.inf]), E4M3, Rule(overflow="raise"))


def test_bad_input():
    """Each message says what was given and what would do."""
    x = torch.zeros(3)
    cases = [
        ({"rule": Rule("nearst")}, "unknown rounding 'nearst' .*nearest-even.*stochastic"),
        ({"rule": Rule(overflow="wrap")}, "unknown overflow 'wrap'.*saturate, inf, nan, raise"),
        ({"rule": Rule(overflow="inf")}, "format E4M3 has no inf code: .* saturate, nan or raise"),
        ({"rule": Rule("stochastic")}, "needs a key"),
    ]
    for arguments, message in cases:
        with pytest.raises(BadInput, match=message):
            round_to_grid(x, E4M3, **arguments)
        with pytest.raises(BadInput, match=message):
            fake_round(x, E4M3, r=None, s=None, **arguments)
    for bad in (torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.complex64)):
        with pytest.raises(BadInput, match=str(bad.dtype)):
            round_to_grid(bad, E4M3)
    with pytest.raises(BadInput, match="list"):
        amax([1.0])


# --------------------------------------------------------------------------------- exhaustive


@pytest.mark.exhaustive
@pytest.mark.parametrize("fmt", [E4M3, E7M0, E0M7, NF], ids=str)
def test_every_float32_in_both_paths(fmt):
    """All 2**32 bit patterns: the compiled path is the torch path."""
    for start in range(-(2**31), 2**31, 2**24):
        x = torch.arange(start, start + 2**24).to(torch.int32).view(torch.float32)
        results = []
        for way in PATHS:
            with path(way):
                results.append(round_to_grid(x, fmt))
        assert_same(*results, x)
