"""Rounding tensors: any format, any rounding, against the scalar reference and by law.

The formats that altcore-formats brings are compared with ml_dtypes and gfloat in
tests/plugins/formats/test_zoo.py; here formats are drawn at random.
"""

import math
from fractions import Fraction

import gfloat
import pytest
import torch
from format_checks import PATHS, all_bfloat16, assert_same, edges, path, random_floats, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import GFLOAT_ROUNDINGS

from altcore.errors import BadInput
from altcore.formats import ROUNDINGS, FloatFormat, float_format, round_scalar, table_format
from altcore.numerics import (
    COUNTS,
    amax,
    compute_dtype,
    fake_round,
    interval_width,
    nearest_error,
    position,
    positions,
    round_to_grid,
    scale_of,
)
from altcore.numerics.hashing import random_bits
from altcore.numerics.plan import float_plan

E0M7 = float_format("E0M7", 0, 7)
E1M6 = float_format("E1M6", 1, 6)
E3M4 = float_format("E3M4", 3, 4)
E4M3 = float_format("E4M3", 4, 3, specials="fn")
E5M2 = float_format("E5M2", 5, 2, specials="ieee")
E7M0 = float_format("E7M0", 7, 0)
BF16 = float_format("BF16", 8, 7, specials="ieee")
FP16 = float_format("FP16", 5, 10, specials="ieee")
WIDE = float_format("E9M0", 9, 0)
FLAT = float_format("flat", 3, 2, subnormals=False)
NF = table_format("nf", [-1.0, -0.52, -0.2844, 0.0, 0.0796, 0.2461, 0.44, 0.723, 1.0])
ODD = table_format("odd", [-3, -1, 1, 3])
CLOSE = table_format("close", [-1, 0, 1, 1 + 2**-23, 1 + 2**-22, 2])
POSITIVE = table_format("positive", [2.0**-9, 0.5, 1, 3])
ALL = [E0M7, E1M6, E3M4, E4M3, E5M2, E7M0, FLAT, NF, ODD, CLOSE, POSITIVE]
DEFINITE = [r for r in ROUNDINGS if r != "stochastic"]
BY_NAME = {"argvalues": ALL, "ids": str}

float_formats = st.builds(
    lambda e, m, bias, s, n: float_format(
        "random", e, m, bias=bias, specials=s if e else "none", subnormals=n or e == 0
    ),
    st.integers(0, 7),
    st.integers(1, 6),
    st.none() | st.integers(-5, 70),
    st.sampled_from(["none", "ieee", "fn", "fnuz"]),
    st.booleans(),
) | st.builds(
    lambda e, bias: float_format("random", e, 0, bias=bias), st.integers(2, 7), st.integers(1, 9)
)
table_formats = (
    st.lists(
        st.integers(-60, 60).map(lambda v: v / 16) | st.floats(-1e4, 1e4, width=32),
        min_size=2,
        max_size=40,
        unique=True,
    )
    .filter(lambda v: max(v) > 0)
    .map(lambda v: table_format("random", sorted(x + 0.0 for x in v)))
)


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
        plan = float_plan(fmt, dtype)
        cut = plan.cut
        if abs(value) < plan.least:
            lifted = torch.tensor(abs(value), dtype=dtype) + plan.least
            value, cut = math.copysign(lifted.item() - plan.least, value), plan.gap_cut
        more = h >> (32 - cut) if cut <= 32 else (h << (cut - 32)) + (1 << (cut - 33))
        yield value, 1 - Fraction(2 * more + 1, 2 ** (cut + 1))


def slow_counts(x, fmt, rounding):
    """The counts by the reference, one element at a time."""
    tally = dict.fromkeys(COUNTS, 0)
    for v in x.double().flatten().tolist():
        tally["elements"] += 1
        if not math.isfinite(v):
            tally["nonfinite"] += 1
            continue
        try:
            q = round_scalar(v, fmt, rounding, "raise")
        except BadInput:
            tally["overflow"] += 1
            continue
        tally["flushed"] += v != 0 and q == 0
    return list(tally.values())


# ------------------------------------------------------------------------------- the reference


@settings(max_examples=60)
@given(
    float_formats | table_formats,
    st.sampled_from(DEFINITE),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    st.integers(0, 2**31),
)
def test_random_formats_round_as_the_reference(fmt, rounding, dtype, seed):
    """Both paths, each overflow rule that the format has, and the counts."""
    x = numbers_for(fmt, seed, dtype)
    rules = ["saturate", *(["inf"] if fmt.inf_codes else []), *(["nan"] if fmt.nan_codes else [])]
    for overflow in rules:
        wanted = reference(x, fmt, rounding, overflow)
        for way in PATHS:
            counts = torch.zeros(len(COUNTS), dtype=torch.int64)
            with path(way):
                got = round_to_grid(x, fmt, rounding=rounding, overflow=overflow)
                counted = round_to_grid(x, fmt, rounding=rounding, overflow=overflow, counts=counts)
            assert_same(got, wanted, x)
            assert_same(counted, wanted, x)
            assert counts.tolist() == slow_counts(x, fmt, rounding)


@settings(max_examples=30)
@given(
    float_formats | table_formats,
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.integers(0, 2**40),
)
def test_stochastic_rounding_is_the_reference_with_the_hash(fmt, dtype, key):
    """Given an element's random bits, stochastic rounding is a definite thing too."""
    x = numbers_for(fmt, key % 1000, dtype)
    drawn = [round_scalar(v, fmt, "stochastic", uniform=u) for v, u in uniforms(x, fmt, key)]
    wanted = torch.tensor(drawn, dtype=torch.float64).to(compute_dtype(dtype, fmt))
    for way in PATHS:
        with path(way):
            got = round_to_grid(x, fmt, rounding="stochastic", key=key)
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
                got = round_to_grid(x, fmt, rounding=rounding)
            assert_same(got + 0.0, torch.tensor(wanted) + 0.0, x)


# ------------------------------------------------------------------------------------ by law


@pytest.mark.parametrize("fmt", **BY_NAME)
@pytest.mark.parametrize("way", PATHS)
def test_grid_values_stay(fmt, way):
    """At a fixed scale rounding is idempotent, whatever the rounding."""
    x = torch.tensor(fmt.values)
    with path(way):
        for rounding in ROUNDINGS:
            assert_same(round_to_grid(x, fmt, rounding=rounding, key=1), x)


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
            negative = round_to_grid(-x, fmt, rounding=other, key=4)
            assert_same(round_to_grid(x, fmt, rounding=rounding, key=4), -negative, x)


@pytest.mark.parametrize("fmt", **BY_NAME)
@pytest.mark.parametrize("way", PATHS)
def test_monotone(fmt, way):
    x = torch.cat([edges(fmt), random_floats(2000)])
    x = x[~torch.isnan(x)].sort().values
    with path(way):
        for rounding in DEFINITE:
            assert (round_to_grid(x, fmt, rounding=rounding).diff() >= 0).all()


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
            y = fake_round(x, fmt, r=r, s=s, rounding=rounding, key=9, counts=counts)
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
            kinds = {"rounding": rounding, "key": 5}
            got = round_to_grid(view, E4M3, **kinds, counts=counts[0])
            straight = view.contiguous().clone().flatten()
            wanted = round_to_grid(straight, E4M3, **kinds, counts=counts[1])
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
def test_counts_add_up(way):
    """Infinities are not finite and so no overflow; -0 and 0 are not flushed."""
    x = torch.tensor(
        [0.0, -0.0, 2.0**-11, -(2.0**-11), 464.0, 465.0, -1e30, 1e38, math.inf, math.nan]
    )
    counts = torch.tensor([100, 0, 0, 0])
    with path(way):
        round_to_grid(x, E4M3, counts=counts)
        assert dict(zip(COUNTS, counts.tolist(), strict=True)) == {
            "elements": 110,
            "overflow": 3,
            "flushed": 2,
            "nonfinite": 2,
        }
        counts.zero_()
        # a finite number whose scaled value is infinite overflows; one that underflows is flushed
        r = torch.tensor(1e10)
        round_to_grid(x, E4M3, r=r, counts=counts)
        assert counts.tolist() == [10, 6, 0, 2]
        counts.zero_()
        round_to_grid(x, E4M3, r=torch.tensor(1e-42), counts=counts)
        assert counts.tolist() == [10, 0, 6, 2]
        counts.zero_()
        assert torch.isnan(round_to_grid(x, E4M3, r=torch.tensor(math.nan), counts=counts)).all()
        assert counts.tolist() == [10, 0, 0, 2]
        counts.zero_()
        # values below a table's smallest overflow it, even to zero
        natural = table_format("natural", [0, 1, 2])
        round_to_grid(torch.tensor([-5.0, 0.2, -0.2, 0.0]), natural, counts=counts)
        assert counts.tolist() == [4, 1, 2, 0]


@pytest.mark.parametrize("way", PATHS)
def test_overflow_that_raises(way):
    with path(way):
        assert round_to_grid(torch.tensor([464.0]), E4M3, overflow="raise") == 448
        with pytest.raises(BadInput, match=r"2 value\(s\) overflow format E4M3"):
            round_to_grid(torch.tensor([464.0, 465.0, -math.inf]), E4M3, overflow="raise")


def test_bad_input():
    """Each message says what was given and what would do."""
    x = torch.zeros(3)
    cases = [
        ({"rounding": "nearest"}, "unknown rounding 'nearest' .*nearest-even.*stochastic"),
        ({"overflow": "wrap"}, "unknown overflow 'wrap'.*saturate, inf, nan, raise"),
        ({"overflow": "inf"}, "format E4M3 has no inf code: .* saturate, nan or raise"),
        ({"rounding": "stochastic"}, "needs a key"),
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


# --------------------------------------------------------------------------------- stochastic


@pytest.mark.parametrize("way", PATHS)
@pytest.mark.parametrize("fmt", [E4M3, E7M0, E0M7, FLAT, NF, BF16, WIDE], ids=str)
def test_stochastic_mean(fmt, way):
    """The mean of many draws is the number itself, within 5 standard errors.

    A correct implementation fails one of these 5 × 14 cases with a probability of 4e-5.
    """
    n = 40000
    dtype = compute_dtype(torch.float32, fmt)
    for key, share in enumerate((0.01, 0.25, 0.5, 0.9, 0.999)):
        i = fmt.index_of(fmt.smallest) + key % 2
        low, high = fmt.values[i], fmt.values[i + 1]
        x = torch.full((n,), low + share * (high - low), dtype=dtype)
        with path(way):
            q = round_to_grid(x, fmt, rounding="stochastic", key=1000 + key)
        up = (q == torch.tensor(high, dtype=dtype)).double().mean().item()
        error = math.sqrt(share * (1 - share) / n)
        assert abs(up - share) < 5 * error + 2.0**-16
        assert ((q.double() - low).abs() < 1e-6 * abs(low)).double().mean() == pytest.approx(1 - up)


@pytest.mark.parametrize("way", PATHS)
def test_draws_depend_on_key_and_index_only(way):
    """Same key, same draws, in any shape, as int or tensor; other keys are independent."""
    x = torch.full((64, 1000), 1.0625)
    with path(way):
        draw = round_to_grid(x, E4M3, rounding="stochastic", key=3)
        again = round_to_grid(x.view(-1), E4M3, rounding="stochastic", key=torch.tensor(3))
        assert_same(draw.flatten(), again)
        part = round_to_grid(x.view(-1)[:777], E4M3, rounding="stochastic", key=3)
        assert_same(draw.flatten()[:777], part)
        others = [round_to_grid(x, E4M3, rounding="stochastic", key=k) for k in (4, -3, 2**40 + 3)]
    for other in others:
        agreement = (draw == other).double().mean().item()
        assert abs(agreement - 0.5) < 5 * 0.5 / math.sqrt(x.numel())


def test_random_bits_are_random():
    """Bits, neighbours and blocks of the hash look random, within 5 standard errors each."""
    n = 1 << 17
    for key in (0, 1, 2**62):
        h = random_bits(torch.Size([n]), key, torch.device("cpu")).long() & 0xFFFFFFFF
        bits = ((h[:, None] >> torch.arange(9, 32)) & 1).double().mean(0)
        assert ((bits - 0.5).abs() * 2 * math.sqrt(n) < 5).all()
        u = (h.double() + 0.5) / 2**32 - 0.5
        for lag in (1, 2, 3, 7, 64, 768, 1024, 4096):
            assert abs((u[lag:] * u[:-lag]).mean().item()) * 12 * math.sqrt(n - lag) < 5
        cells = torch.bincount((h[1:] >> 25) * 128 + (h[:-1] >> 25), minlength=1 << 14).double()
        expected = (n - 1) / (1 << 14)
        chi = ((cells - expected) ** 2 / expected).sum().item()
        assert abs(chi - (1 << 14)) < 5 * math.sqrt(2 * (1 << 14))


# ------------------------------------------------------------------------------------- scales


def fl(value, bits, least):
    """A Fraction rounded to nearest even with so many bits, in steps of 2**least at least."""
    if value == 0:
        return value
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    if Fraction(2) ** exponent > value:
        exponent -= 1
    unit = Fraction(2) ** max(exponent + 1 - bits, least)
    return round(value / unit) * unit


single = st.floats(min_value=2.0**-147, max_value=2.0**125, width=32)
margins = st.just(1.0) | st.floats(0.5, 4, width=32)


@settings(max_examples=200)
@given(single, margins, st.sampled_from([E4M3, E0M7, E7M0, E5M2, NF, E3M4]))
def test_scale_is_the_exact_quotient_rounded_once(number, margin, fmt):
    """Exactly s = fl(m / max) and r = fl(max / m), m = fl(amax · margin): alone and among many."""
    a = torch.tensor(number, dtype=torch.float32)
    m = fl(Fraction(number) * Fraction(margin), 24, -149)
    top = Fraction(torch.tensor(fmt.max, dtype=torch.float32).item())
    wanted = (fl(m / top, 24, -149), fl(top / m, 24, -149))
    for given_amax in (a, a.view(1)):
        s, r = (Fraction(v.item()) for v in scale_of(given_amax, fmt, margin=margin))
        if wanted[1] > torch.finfo(torch.float32).max:
            assert r == Fraction(torch.finfo(torch.float32).max)
            assert s == Fraction(2) ** -128
        else:
            assert (s, r) == wanted


@settings(max_examples=200)
@given(single, margins, st.sampled_from([E4M3, E0M7, E7M0, NF]))
def test_power_of_two_scale_is_the_smallest(number, margin, fmt):
    """The smallest power of two with max · s >= amax; its inverse is exact."""
    a = torch.tensor(number, dtype=torch.float32)
    m = fl(Fraction(number) * Fraction(margin), 24, -149)
    top = Fraction(torch.tensor(fmt.max, dtype=torch.float32).item())
    for given_amax in (a, a.view(1)):
        s, r = (
            Fraction(v.item()) for v in scale_of(given_amax, fmt, power_of_two=True, margin=margin)
        )
        assert s * r == 1
        assert s.numerator == 1 or s.denominator == 1
        if Fraction(2) ** -126 < s < Fraction(2) ** 126:
            assert top * s >= m > top * s / 2


def test_scales_of_odd_tensors():
    """Zero gives 1; NaN and infinity make everything NaN; nothing overflows on the way."""
    for value in (torch.tensor(0.0), torch.zeros(2)):
        for power_of_two in (False, True):
            s, r = scale_of(value, E4M3, power_of_two=power_of_two)
            assert (s == 1).all()
            assert (r == 1).all()
    for bad in (math.nan, math.inf):
        x = torch.tensor([1.0, bad])
        for power_of_two in (False, True):
            for each in scale_of(amax(x), E4M3, power_of_two=power_of_two):
                assert torch.isnan(each)
    for tiny in (1e-45, 1e-41, 1e-38):
        x = torch.tensor([tiny, -tiny / 2])
        s, r = scale_of(amax(x), E4M3)
        y = fake_round(x, E4M3, r=r, s=s)
        assert (y - x).abs().max() <= max(tiny / 16, 2.0**-128)
    huge = torch.tensor([3.4e38])
    s, r = scale_of(amax(huge), E0M7)
    assert torch.isfinite(fake_round(huge, E0M7, r=r, s=s)).all()
    with pytest.raises(BadInput, match="margin"):
        scale_of(torch.tensor(1.0), E4M3, margin=0.0)


@pytest.mark.parametrize("way", PATHS)
def test_amax(way):
    with path(way):
        assert amax(torch.tensor([1.0, -3.0])) == 3
        assert torch.isnan(amax(torch.tensor([1.0, math.nan, math.inf])))
        assert amax(torch.tensor([1.0, -math.inf])) == math.inf
        assert amax(torch.zeros(0)) == 0
        assert not torch.signbit(amax(torch.tensor([-0.0])))
        assert amax(torch.tensor(-2.5, dtype=torch.bfloat16)).dtype == torch.float32
        assert amax(torch.tensor([-1e300], dtype=torch.float64)) == 1e300
        assert amax(torch.randn(50, 30).t()).ndim == 0


def test_formats_beyond_float32():
    """They compute in float64, and float32 scales keep 24 bits so that q · s stays exact."""
    assert compute_dtype(torch.float32, WIDE) == torch.float64
    assert compute_dtype(torch.float32, BF16) == torch.float32
    assert compute_dtype(torch.float64, E4M3) == torch.float64
    s, r = scale_of(torch.tensor(0.3), WIDE)
    assert s.dtype == r.dtype == torch.float64
    mantissa, _ = math.frexp(s.item())
    assert (mantissa * 2**24).is_integer()
    x = torch.tensor([0.3, -0.2, 1e-30])
    y = fake_round(x, WIDE, r=r, s=s)
    assert y.dtype == torch.float32
    assert ((y - x).abs() <= x.abs() / 2).all()


# ---------------------------------------------------------------------------------- positions


@pytest.mark.parametrize("fmt", [*ALL, BF16, WIDE], ids=str)
def test_position_is_the_index(fmt):
    """In `values`, for every value; -0 stands where 0 does, and what is no number nowhere."""
    values = torch.tensor(fmt.values, dtype=compute_dtype(torch.float32, fmt))
    assert position(values, fmt).tolist() == list(range(len(values)))
    odd = torch.tensor([math.nan, math.inf, -math.inf])
    assert position(odd, fmt).tolist() == [-1, -1, -1]
    if 0.0 in fmt.values:
        assert position(torch.tensor(-0.0), fmt) == fmt.index_of(0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("fmt", [*ALL, BF16, WIDE], ids=str)
def test_position_by_bits_is_that_by_search(fmt, dtype):
    """However it is found, for values drawn many times and in any order, -0 and NaN among them."""
    dtype = compute_dtype(dtype, fmt)
    generator = torch.Generator().manual_seed(1)
    values = torch.tensor(fmt.values, dtype=dtype)
    q = values[torch.randint(len(values), (40, 50), generator=generator)]
    q[0, :4] = torch.tensor(
        [-0.0 if 0.0 in fmt.values else math.nan, math.nan, math.inf, -math.inf]
    )
    assert torch.equal(position(q, fmt), positions._position_by_search(q, fmt))
    assert torch.equal(position(q.t(), fmt), positions._position_by_search(q, fmt).t())
    if isinstance(fmt, FloatFormat):
        by_parts = positions._position_by_parts(q, fmt, float_plan(fmt, dtype))
        assert torch.equal(position(q, fmt), by_parts)


def test_a_format_of_many_values_is_searched():
    """Where a table of leading bits would be too long."""
    values = [1 + i * 2.0**-22 for i in range(5)]
    fmt = table_format("FINE", [-1.0, 0.0, *values])
    assert positions._leading_bits(fmt, torch.float32, torch.device("cpu")) is None
    assert position(torch.tensor(values), fmt).tolist() == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("fmt", [*ALL, WIDE], ids=str)
@pytest.mark.parametrize("scale", [None, 0.25])
def test_stiffness_is_the_width_of_the_interval(fmt, scale):
    """By a search in `values`: away from zero on a grid point, the last one from there on."""
    values = torch.tensor(fmt.values, dtype=compute_dtype(torch.float32, fmt))
    between = (values[1:] + values[:-1]) / 2
    factor = 1.0 if scale is None else scale
    x = torch.cat([values, between, -0.99 * values, torch.tensor([0.0, -0.0, 10 * fmt.max])])
    got = interval_width(x * factor, fmt, None if scale is None else torch.tensor(scale))
    grid = values.tolist()
    for size, width in zip(x.abs().tolist(), got.tolist(), strict=True):
        above = next((i for i, v in enumerate(grid) if i and v > size), len(grid) - 1)
        assert width == pytest.approx((grid[above] - grid[above - 1]) * factor, rel=1e-6)
    assert torch.isnan(interval_width(torch.tensor(math.nan), fmt))


def test_stiffness_of_fixed_point_is_constant():
    x = torch.linspace(-2, 2, 101)
    assert (interval_width(x, E0M7) == 1 / 128).all()
    assert (interval_width(x, E1M6) == 1 / 32).all()
    assert len(interval_width(x, E3M4).unique()) > 3


def test_grid_error():
    x = torch.tensor([1.0, 1.03, 30.0, 400.0])
    assert_same(nearest_error(x, E3M4), round_to_grid(x, E3M4) - x)


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
