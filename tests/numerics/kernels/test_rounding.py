"""The compiled kernels: the torch path bit for bit."""

import ctypes
import itertools
import math

import pytest
import torch
from format_checks import HAS_VMAP, PATHS, assert_same, edges, path, random_floats, rules_of

from altcore.formats import ROUNDINGS, code_format, float_format, table_format
from altcore.numerics import (
    NEAREST,
    UNMETERED,
    Meters,
    Rule,
    amax,
    fake_round,
    round_scaled,
    round_to_grid,
    scale_of,
)
from altcore.numerics.kernels import build
from altcore.numerics.kernels.jobs import prepare_constants

# Evenly spaced within each binade, at its own density, but for the outermost ones, as posits are.
TAPERED = [0, 2.0**-7, *(k / 16 for k in range(2, 16)), 1, 1.5, *range(2, 9), 12, 16, 96]
FORMATS = [
    float_format("E0M7", 0, 7),
    float_format("E0M1", 0, 1),
    float_format("E1M6", 1, 6),
    float_format("E3M4", 3, 4),
    float_format("E4M3", 4, 3, specials="fn"),
    float_format("E5M2", 5, 2, specials="ieee"),
    float_format("E6M1", 6, 1),
    float_format("E7M0", 7, 0),
    float_format("E4M0", 4, 0, bias=4),  # even exponents have odd codes
    float_format("E8M2", 8, 2, specials="ieee"),
    float_format("FP16", 5, 10, specials="ieee"),
    float_format("BF16", 8, 7, specials="ieee"),
    float_format("huge", 3, 2, bias=-110),  # the constant that rounds subnormals overflows
    float_format("flat", 3, 2, subnormals=False),
    table_format("binary", [-1, 1]),
    table_format("few", [-3, -0.7, 0, 0.1, 0.5, 4]),
    table_format("positive", [2.0**-9, 0.5, 1, 3]),
    table_format("close", [-1, 0, 1, 1 + 2**-23, 1 + 2**-22, 2, *range(3, 40)]),
    table_format("log", sorted(s * 1.05**k for k in range(-63, 64) for s in (-1, 1))),
    table_format("many", [k * abs(k) / 1024 for k in range(-5000, 5001)]),
    code_format("above", [0.5, 1, 3, math.inf]),
    code_format("between", [0.1, 0.3, 4, math.inf, -math.inf, math.nan]),  # not float32's values
    table_format("integers", range(-20, 21)),
    table_format("tapered", sorted({s * v for v in TAPERED for s in (-1, 1)})),
    table_format("no zero", sorted(s * v for v in TAPERED[1:] for s in (-1, 1))),
]
E4M3, NF = FORMATS[4], FORMATS[15]
available = pytest.mark.skipif(build.library() is None, reason="no C compiler")


def roundings_of(fmt):
    """All, but log-nearest of formats whose thresholds take seconds: see test_log_nearest.py."""
    return [r for r in ROUNDINGS if r != "log-nearest" or len(fmt.values) < 20_000]


def inputs(fmt):
    near = random_floats(1500, seed=1).abs().frac() * fmt.max * 2.5
    near[::2] *= -1
    return torch.cat([edges(fmt, most=150), random_floats(1500), near[torch.isfinite(near)]])


@available
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_same_bits_as_torch(fmt):
    """Every rounding, overflow rule and dtype, with and without factors and counts."""
    base = inputs(fmt)
    s, r = scale_of(torch.tensor(3.7), fmt)
    for dtype, rounding, factors, counted in itertools.product(
        (torch.float32, torch.bfloat16), roundings_of(fmt), ((None, None), (s, r)), (False, True)
    ):
        x = base.to(dtype)
        for overflow in rules_of(fmt):
            results, tallies = [], []
            for way in PATHS:
                counts = torch.zeros(4, dtype=torch.int64) if counted else None
                kinds = {"rule": Rule(rounding, overflow), "key": 11, "meters": Meters(counts)}
                with path(way):
                    q = round_to_grid(x, fmt, r=factors[1], **kinds)
                    y = fake_round(x, fmt, s=factors[0], r=factors[1], **kinds)
                results.append((q, y))
                tallies.append(None if counts is None else counts.tolist())
            assert_same(results[0][0], results[1][0], x)
            assert_same(results[0][1].float(), results[1][1].float(), x)
            assert tallies[0] == tallies[1]


@available
def test_same_bits_for_extreme_scales():
    """Products that overflow, underflow or are subnormal, to bfloat16 too."""
    x = torch.cat([edges(E4M3), random_floats(2000)])
    for scale in (2.0**-140, 3e-39, 1e-30, 1e30, 3e38):
        s = torch.tensor(scale)
        for dtype in (torch.float32, torch.bfloat16):
            results = []
            for way in PATHS:
                with path(way):
                    results.append(fake_round(x.to(dtype), E4M3, s=s, r=1 / s).float())
            assert_same(*results)


@available
def test_rounded_once_to_bfloat16():
    """Under scales that bring products next to a tie between two bfloat16s, and onto one."""
    x = torch.arange(-480, 481).bfloat16()
    for m, n, way in itertools.product((1, 8, 9, 11, 13, 15), (128, 131, 200, 255), (-1, 0, 1)):
        s = torch.tensor((n + 0.5) / 128 / m)
        s = s if not way else torch.nextafter(s, s * (1 + way))
        for fmt in (E4M3, FORMATS[1], FORMATS[11], NF):
            found = []
            for wanted in PATHS:
                counts = torch.zeros(4, dtype=torch.int64)
                with path(wanted):
                    found.append(fake_round(x, fmt, s=s, r=None).float())
                    found.append(fake_round(x, fmt, s=s, r=None, meters=Meters(counts)).float())
            for other in found[1:]:
                assert_same(other, found[0])


@available
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_scaled_at_once(fmt):
    """Finding the scale and rounding in one call: as in three, by torch operations."""
    base = random_floats(700, seed=3)
    base = torch.cat([base[torch.isfinite(base) & (base.abs() < 1e20)], torch.zeros(3)])
    for dtype, rounding, by_power, counted, margin in itertools.product(
        (torch.float32, torch.bfloat16),
        roundings_of(fmt),
        (False, True),
        (False, True),
        (0.7, 1.0),
    ):
        x = base.to(dtype)
        for overflow, fake in itertools.product(rules_of(fmt), (False, True)):
            kinds = {"rule": Rule(rounding, overflow), "key": 7, "fake": fake}
            found = []
            for way in PATHS:
                sums = torch.zeros(4, dtype=torch.int64), torch.zeros(2, dtype=torch.float64)
                meters = Meters(*sums) if counted else UNMETERED
                with path(way):
                    made = round_scaled(
                        x, fmt, power_of_two=by_power, margin=margin, meters=meters, **kinds
                    )
                found.append((made, sums))
            for one, other in zip(found[0][0], found[1][0], strict=True):
                assert one.dtype == other.dtype
                assert_same(one.float(), other.float())
            if counted:
                assert found[0][1][0].tolist() == found[1][1][0].tolist()
                # Without vectors a compiler adds hundreds of float32 one after another.
                torch.testing.assert_close(found[0][1][1], found[1][1][1], rtol=1e-5, atol=0)


@available
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_grid_values_as_bfloat16(fmt):
    """Grid values that are wanted as bfloat16 are those in float32, rounded once, however counted.

    Under the tensor's own scale nothing overflows, which saves counting it: with and without
    numbers that are not finite.
    """
    base = random_floats(1500, seed=4)
    finite = base[torch.isfinite(base) & (base.abs() < 1e20)]
    for x in (finite, base, finite.bfloat16(), torch.zeros(7)):
        wanted = round_scaled(x, fmt, fake=False)[0].bfloat16()
        own = torch.zeros(4, dtype=torch.int64)
        r = scale_of(amax(x), fmt)[1]
        with path("torch"):
            round_to_grid(x, fmt, r=r, meters=Meters(own))
        for way, counted in itertools.product(PATHS, (False, True)):
            counts = torch.zeros(4, dtype=torch.int64) if counted else None
            with path(way):
                kinds = {"meters": Meters(counts), "dtype": torch.bfloat16}
                assert_same(round_scaled(x, fmt, fake=False, **kinds)[0], wanted)
                assert counts is None or counts.tolist() == own.tolist()
                assert_same(round_to_grid(x, fmt, r=r, **kinds), wanted)


@available
def test_binades_that_are_evenly_spaced():
    """Are known as such, and so are those below them; what lies elsewhere is looked up.

    Wherever it lies: one number in a hundred, and all of them.
    """
    integers, tapered, other = FORMATS[-3], FORMATS[-2], FORMATS[-1]
    magics = {}
    for fmt in (integers, tapered, other):
        job = prepare_constants(fmt, NEAREST).job
        assert bool(job.magics) == (fmt is not other)
        if job.magics:
            found = (ctypes.c_float * 256).from_address(job.magics)
            magics[fmt] = [e - 127 for e in range(256) if found[e]]
    assert magics[integers] == list(range(-127, 4))
    assert magics[tapered] == [*range(-127, -8), *range(-3, 4)]
    drawn = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    for share in (0, 0.01, 1):
        x = torch.where(torch.linspace(0, 1, 5000) < share, drawn * 1e-3, drawn * 2).roll(1234)
        for fmt in (integers, tapered):
            results = []
            for way in PATHS:
                with path(way):
                    results.append(round_to_grid(x, fmt))
            assert_same(*results, x)


@available
@pytest.mark.parametrize("by_power", [False, True])
def test_scales_made_at_once(by_power):
    """Of every size of largest magnitude: zeros, subnormals, huge ones, and what is not finite."""
    sizes = (0, 1e-45, 1e-42, 1e-38, 2.0**-126, 0.3, 7, 448, 449, 3e38, float("inf"), float("nan"))
    for size, margin, meets, fmt in itertools.product(
        sizes, (1.0, 1e-7, 1.3, 1e30), (None, 1.0, 1e-40, 3.3e38), (E4M3, NF)
    ):
        x = torch.tensor([[0.0, -size, size / 3], [0.1 * size, 0, 0]])
        for other in (x, x.bfloat16(), x.T, x[:, :0]):
            kinds = {"power_of_two": by_power, "margin": margin, "meets": meets, "fake": True}
            found = []
            for way in PATHS:
                with path(way):
                    found.append(round_scaled(other, fmt, **kinds))
            for one, two in zip(*found, strict=True):
                assert one.shape == two.shape
                assert_same(one.float(), two.float())


@available
@pytest.mark.parametrize("fmt", [E4M3, NF], ids=str)
def test_threads_do_not_matter(fmt):
    """Results and counts are those of one thread, for tensors that end inside a block too."""
    before = torch.get_num_threads()
    x = torch.randn(100_003, generator=torch.Generator().manual_seed(0)) * 3
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            counts = torch.zeros(4, dtype=torch.int64)
            q = round_to_grid(x, fmt, Rule("stochastic"), key=2, meters=Meters(counts))
            scaled = torch.stack(round_scaled(x, fmt, fake=True)[1:])
            results.append((q, counts.tolist(), amax(x), scaled))
    finally:
        torch.set_num_threads(before)
    for q, counts, largest, scaled in results[1:]:
        assert_same(q, results[0][0])
        assert counts == results[0][1]
        assert largest == results[0][2]
        assert_same(scaled, results[0][3])


@available
def test_kernels_are_used(monkeypatch):
    """Plain CPU tensors go to the library; the switch, other dtypes and tracing do not."""
    calls = []
    real = build.library()

    class Spy:
        @staticmethod
        def altcore_round(job, call):
            calls.append(job)
            return real.altcore_round(job, call)

    monkeypatch.setattr("altcore.numerics.kernels.rounding.kernels", lambda: Spy)
    x = torch.randn(10)
    round_to_grid(x, E4M3)
    fake_round(x.bfloat16(), E4M3, r=None, s=None)
    round_scaled(torch.nn.Parameter(x), E4M3, fake=False)
    assert len(calls) == 3
    round_to_grid(x.double(), E4M3)
    round_scaled(x, E4M3, Rule(overflow="raise"), fake=True)
    if HAS_VMAP:
        torch.func.vmap(lambda row: round_to_grid(row, E4M3))(torch.randn(2, 3))
    monkeypatch.setenv("ALTCORE_KERNELS", "off")
    round_to_grid(x, E4M3)
    assert len(calls) == 3


def test_fake_tensors_stay_fake():
    """Shapes can be worked out without data, as tracing does."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        for fmt in (E4M3, NF):
            x = torch.empty(3, 4)
            s, r = scale_of(amax(x), fmt)
            assert fake_round(x, fmt, r=r, s=s).shape == (3, 4)
    with path("torch"):  # and nothing fake is kept for later
        assert round_to_grid(torch.tensor([0.4, 5.0]), NF).tolist() == [0.5, 4.0]


@pytest.mark.slow
@pytest.mark.parametrize("fmt", [E4M3, FORMATS[7], NF], ids=str)
def test_compiled_by_torch(fmt):
    """torch.compile takes the torch operations whole, and gives the same bits."""

    def step(x, key, counts):
        s, r = scale_of(amax(x), fmt)
        y = fake_round(x, fmt, r=r, s=s, meters=Meters(counts))
        return y, round_to_grid(x, fmt, Rule("stochastic"), r=r, key=key)

    x = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    tallies = [torch.zeros(4, dtype=torch.int64) for _ in range(2)]
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True)(x, torch.tensor(5), tallies[0])
    for got, wanted in zip(compiled, step(x, torch.tensor(5), tallies[1]), strict=True):
        assert_same(got, wanted)
    assert tallies[0].tolist() == tallies[1].tolist()
