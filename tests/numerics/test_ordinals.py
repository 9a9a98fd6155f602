"""Where numbers stand on a grid: ordinals, interval widths, rounding errors."""

import bisect
import math

import pytest
import torch
from format_checks import assert_same
from grid_formats import ALL, BF16, E0M7, E1M6, E3M4, E4M3, FACE, WIDE, normal

import altcore
from altcore import fake_quantize, get_format
from altcore.formats import FloatFormat, table_format
from altcore.numerics import (
    compute_dtype,
    interval_width,
    kernels,
    nearest_error,
    ordinal,
    ordinals,
    round_to_grid,
)
from altcore.numerics.functional import grid_error, neighbours, stiffness, ulp_distance
from altcore.numerics.kernels import build
from altcore.numerics.rounding_constants import float_constants


@pytest.mark.parametrize("fmt", [*ALL, BF16, WIDE], ids=str)
def test_ordinal_is_the_index(fmt):
    """In `values`, for every value; -0 stands where 0 does, and what is no number nowhere."""
    values = torch.tensor(fmt.values, dtype=compute_dtype(torch.float32, fmt))
    assert ordinal(values, fmt).tolist() == list(range(len(values)))
    odd = torch.tensor([math.nan, math.inf, -math.inf])
    assert ordinal(odd, fmt).tolist() == [-1, -1, -1]
    if 0.0 in fmt.values:
        assert ordinal(torch.tensor(-0.0), fmt) == fmt.index_of(0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("fmt", [*ALL, BF16, WIDE], ids=str)
def test_ordinal_by_bits_is_that_by_search(fmt, dtype):
    """However it is found, for values drawn many times and in any order, -0 and NaN among them."""
    dtype = compute_dtype(dtype, fmt)
    generator = torch.Generator().manual_seed(1)
    values = torch.tensor(fmt.values, dtype=dtype)
    q = values[torch.randint(len(values), (40, 50), generator=generator)]
    q[0, :4] = torch.tensor(
        [-0.0 if 0.0 in fmt.values else math.nan, math.nan, math.inf, -math.inf]
    )
    assert torch.equal(ordinal(q, fmt), ordinals._ordinal_by_search(q, fmt))
    assert torch.equal(ordinal(q.t(), fmt), ordinals._ordinal_by_search(q, fmt).t())
    if isinstance(fmt, FloatFormat):
        by_parts = ordinals._ordinal_by_parts(q, fmt, float_constants(fmt, dtype))
        assert torch.equal(ordinal(q, fmt), by_parts)


def test_a_format_of_many_values_is_searched():
    """Where a table of leading bits would be too long."""
    values = [1 + i * 2.0**-22 for i in range(5)]
    fmt = table_format("FINE", [-1.0, 0.0, *values])
    assert ordinals._leading_bits(fmt, torch.float32, torch.device("cpu")) is None
    assert ordinal(torch.tensor(values), fmt).tolist() == [2, 3, 4, 5, 6]


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


@pytest.mark.skipif(build.library() is None, reason="no C compiler")
@pytest.mark.parametrize("name", ["E4M3", "E5M2", "E3M4", "E0M7", "E7M0", "E2M1", "E4M3FNUZ"])
@pytest.mark.parametrize("size", [1, 7, 1024, 1025, 70_001])
def test_ordinals_by_the_kernel(monkeypatch, name, size):
    """The ordinals of all values, of -0 and of what is not finite are those of the torch path."""
    fmt = get_format(name)
    special = torch.tensor([0.0, -0.0, math.nan, -math.nan, math.inf, -math.inf, *fmt.values])
    x = round_to_grid(torch.randn(size, generator=torch.Generator().manual_seed(0)) * 3, fmt)
    calls, own = [], kernels.ordinal
    monkeypatch.setattr(kernels, "ordinal", lambda *a: calls.append(a) or own(*a))
    found = {}
    for switch in ("on", "off"):
        monkeypatch.setenv(build.SWITCH, switch)
        found[switch] = [ordinal(t, fmt).tolist() for t in (special.float(), x)]
    assert found["on"] == found["off"]
    assert found["on"][0][6:] == list(range(len(fmt.values)))
    if ordinals._doubles(float_constants(fmt, torch.float32)):
        assert len(calls) == 2


def slow_neighbours(x, grid):
    """By a search: the largest below and the smallest above, or NaN."""
    below, above = bisect.bisect_left(grid, x), bisect.bisect_right(grid, x)
    missing = math.isnan(x)
    return (
        math.nan if missing or below == 0 else grid[below - 1],
        math.nan if missing or above == len(grid) else grid[above],
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("fmt", FACE, ids=str)
def test_neighbours(fmt, dtype):
    """Strictly between them, on the grid as `decode` has it, at any scale; none of NaN."""
    wide = compute_dtype(dtype, fmt)
    values = torch.tensor(fmt.values, dtype=wide)
    keep = torch.linspace(0, len(values) - 1, min(len(values), 60)).long()
    for scale in (None, 0.3, 1e-44 if wide == torch.float32 else 1e-300):
        s = torch.tensor(1.0 if scale is None else scale, dtype=wide)
        grid = values * s
        at = grid[keep]
        up, down = torch.full_like(at, math.inf), torch.full_like(at, -math.inf)
        x = torch.cat([at, torch.nextafter(at, up), torch.nextafter(at, down), up[:1], down[:1]])
        x = torch.cat([x, -x, torch.tensor([0.0, -0.0, math.nan]).to(wide)]).to(dtype)
        below, above = neighbours(x, fmt, scale=scale)
        assert below.dtype == above.dtype == wide
        numbers = grid.tolist()
        wanted = [slow_neighbours(v, numbers) for v in x.double().tolist()]
        for got, column in zip((below, above), zip(*wanted, strict=True), strict=True):
            assert_same(got + 0.0, torch.tensor(column, dtype=torch.float64).to(wide) + 0.0, x)


def test_neighbours_of_what_is_on_the_grid():
    """What fake_quantize returns has the values beside it for neighbours; a scale may broadcast."""
    x = normal(6, 50)
    scale = torch.rand(6, 1, generator=torch.Generator().manual_seed(1)) + 0.1
    y = fake_quantize(x, E3M4, scale=scale)
    below, above = neighbours(y, E3M4, scale=scale)
    assert ((below < y) & (y < above)).all()
    for row, s, low, high in zip(y, scale, below, above, strict=True):
        assert_same(neighbours(row, E3M4, scale=s)[0], low)
        assert (ulp_distance(row, low, E3M4, scale=s) == 1).all()
        assert (ulp_distance(row, high, E3M4, scale=s) == 1).all()
    assert [t.shape for t in altcore.neighbours(torch.zeros(0, 3), "E3M4")] == [(0, 3)] * 2


def test_float64_is_compared_as_it_is():
    x = torch.tensor([1 + 2.0**-50, 1 - 2.0**-50], dtype=torch.float64)
    assert [t.tolist() for t in neighbours(x, E4M3)] == [[1.0, 0.9375], [1.125, 1.0]]


def test_stiffness_and_grid_error():
    """Thin faces of `altcore.numerics`, with a scale."""
    x = normal(40)
    for fmt in FACE:
        s = torch.tensor(0.25, dtype=compute_dtype(x.dtype, fmt))
        assert_same(stiffness(x, fmt), ordinals.interval_width(x, fmt))
        assert_same(stiffness(x, fmt, scale=0.25), ordinals.interval_width(x, fmt, s))
        assert_same(grid_error(x, fmt), ordinals.nearest_error(x, fmt))
        error = fake_quantize(x, fmt, scale=0.25) - x
        assert_same(grid_error(x, fmt, scale=0.25).float(), error)
    assert altcore.stiffness(torch.tensor(1.0), "E3M4") == 1 / 16
    # On a grid point of a scaled table: the interval away from zero, whatever x / s rounds to.
    values = torch.tensor([v for v in get_format("LOG4_3-by-log").values if v > 0])
    for scale in (0.3, 0.7, 1.1):
        widths = stiffness(values * scale, "LOG4_3-by-log", scale=scale)
        assert_same(widths[:-1], values.diff() * scale)
    assert altcore.grid_error(torch.tensor(1.03125 + 2.0**-20), "E3M4") == 2**-5 - 2.0**-20
