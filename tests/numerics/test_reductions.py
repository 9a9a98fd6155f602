"""Passes that only add up: compiled, by torch, and by plain Python in exact arithmetic."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from altcore.numerics import (
    count_magnitudes,
    count_small,
    inner_products,
    moments,
)
from altcore.numerics.kernels import build

ORDINARY = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
DTYPES = [torch.float32, torch.bfloat16, torch.float64]
SIZES = [1, 7, 1024, 1025, 70_001]
COMPILED = build.library() is not None
available = pytest.mark.skipif(not COMPILED, reason="no C compiler")


@pytest.fixture(params=["on", "off"])
def kernels(request, monkeypatch):
    """Both ways."""
    monkeypatch.setenv(build.SWITCH, request.param)


def numbers(size, dtype, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=draw, dtype=torch.float64).mul(3).round(decimals=1).to(dtype)


@given(
    pairs=st.lists(st.tuples(ORDINARY, ORDINARY), max_size=20),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    switch=st.sampled_from(["on", "off"]),
)
def test_inner_products_are_those_of_exact_arithmetic(pairs, dtypes, switch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(build.SWITCH, switch)
        x, y = (torch.tensor([p[i] for p in pairs]).to(dtypes[i]) for i in (0, 1))
        found = inner_products(x, y)
    a, b = ([Fraction(v) for v in t.tolist()] for t in (x, y))
    exact = [
        sum(p * p for p in a),
        sum(q * q for q in b),
        sum(p * q for p, q in zip(a, b, strict=True)),
        sum((p - q) ** 2 for p, q in zip(a, b, strict=True)),
    ]
    # Products cancel: what is lost is of the size of the factors.
    scale = float(max(exact[:2], default=0))
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([float(e) for e in exact], rel=1e-12, abs=1e-14 * scale)


@given(
    values=st.lists(ORDINARY, min_size=1, max_size=20),
    dtype=st.sampled_from(DTYPES),
    switch=st.sampled_from(["on", "off"]),
)
def test_moments_are_those_of_exact_arithmetic(values, dtype, switch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(build.SWITCH, switch)
        x = torch.tensor(values).to(dtype)
        found = moments(x)
    exact = [Fraction(v) for v in x.tolist()]
    mean = sum(exact) / len(exact)
    squares = sum((v - mean) ** 2 for v in exact)
    largest = float(max(abs(v) for v in exact))
    assert found[0] == len(values)
    assert float(found[1]) == pytest.approx(float(mean), rel=1e-12, abs=1e-14 * largest)
    assert float(found[2]) == pytest.approx(float(squares), rel=1e-12, abs=1e-14 * largest**2)


@given(
    values=st.lists(st.floats(width=32), max_size=20),
    least=st.floats(0, 100, width=32, exclude_min=True),
    r=st.sampled_from([None, 0.25, 3.0]),
    dtype=st.sampled_from(DTYPES),
    switch=st.sampled_from(["on", "off"]),
)
def test_small_elements_are_counted(values, least, r, dtype, switch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(build.SWITCH, switch)
        x = torch.tensor(values).to(dtype)
        found = count_small(x, least, None if r is None else torch.tensor(r))
    wide = torch.promote_types(dtype, torch.float32)
    sizes = (x.to(wide) * (1.0 if r is None else r)).abs().tolist()
    expected = sum(s < least and v != 0 for s, v in zip(sizes, x.tolist(), strict=True))
    assert found == expected


@available
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_the_kernels_are_the_torch_path(monkeypatch, size, dtype):
    """At sizes that are no multiple of their blocks, and that several threads share."""
    x, y = numbers(size, dtype), numbers(size, torch.float32, seed=1)
    found = {}
    for switch in ("on", "off"):
        monkeypatch.setenv(build.SWITCH, switch)
        sums = (*inner_products(x, y).tolist(), *moments(x).tolist())
        found[switch] = sums, int(count_small(x, 1.0)), int(count_small(x, 1.0, torch.tensor(0.3)))
    assert found["on"][0] == pytest.approx(found["off"][0], rel=1e-12, abs=1e-9)
    assert found["on"][1:] == found["off"][1:]


def test_what_is_not_finite_stays(kernels):
    """It makes the sums NaN or infinite, and is no small element."""
    x, y = torch.tensor([1.0, math.nan, 2.0]), torch.tensor([1.0, 1.0, math.inf])
    xx, yy, xy, dd = inner_products(x, y).tolist()
    assert math.isnan(xx)
    assert yy == math.inf
    assert math.isnan(xy)
    assert math.isnan(dd)
    assert math.isnan(moments(x)[1])
    assert count_small(torch.cat([x, y]), 1.5) == 3


def test_two_shapes_are_refused(kernels):
    with pytest.raises(ValueError, match="two shapes"):
        inner_products(torch.ones(40), torch.ones(2))


def test_nothing_is_below_nothing(kernels):
    assert count_small(torch.tensor([0.0, 0.0, 1.0]), 0.0) == 0


def test_large_numbers_do_not_overflow(kernels):
    """Squares of what float32 holds are summed up in float64."""
    x = torch.full((10,), 3e38)
    assert float(inner_products(x, -x)[3]) == pytest.approx(40 * float(x[0]) ** 2)


def test_other_layouts(kernels):
    """Transposed, of no dimension, and of no element."""
    x = torch.arange(6.0).view(2, 3).t()
    assert inner_products(x, x * 2).tolist() == [55.0, 220.0, 110.0, 55.0]
    assert moments(x).tolist() == [6.0, 2.5, 17.5]
    assert count_small(x, 3.0) == 2
    assert inner_products(torch.tensor(3.0), torch.tensor(1.0)).tolist() == [9, 1, 3, 4]
    nothing = torch.zeros(0)
    assert inner_products(nothing, nothing).tolist() == [0.0] * 4
    assert count_small(nothing, 1.0) == 0


def test_magnitudes_are_counted_by_half_binades():
    """Zeros, subnormals of float32 and what is not finite are apart; layout does not matter."""
    x = torch.tensor([[0.0, 1.0, -1.49], [1.5, -2.0, 2**-140], [math.inf, math.nan, 3.9]]).t()
    one = 2 * 127
    counts = {0: 1, 1: 1, one: 2, one + 1: 1, one + 2: 1, one + 3: 1, 510: 1, 511: 1}
    found = count_magnitudes(x)
    assert {i: int(n) for i, n in enumerate(found) if n} == counts
    halved = count_magnitudes(x, torch.tensor(0.5))
    assert int(halved[one - 2]) == 2
    assert int(count_magnitudes(torch.randn(200_000, dtype=torch.bfloat16)).sum()) == 200_000
    assert int(count_magnitudes(torch.zeros(0)).sum()) == 0
