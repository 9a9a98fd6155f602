"""The public functions: quantize, fake_quantize, encode, decode, ulp_distance."""

import math

import pytest
import torch
from format_checks import assert_same

import altcore
from altcore.errors import BadInput
from altcore.formats import float_format, table_format
from altcore.numerics import round_to_grid, scale_of
from altcore.numerics.functional import decode, encode, fake_quantize, quantize, ulp_distance

E0M7 = float_format("E0M7", 0, 7)
E3M4 = float_format("E3M4", 3, 4)
E4M3 = float_format("E4M3", 4, 3, specials="fn")
E5M2 = float_format("E5M2", 5, 2, specials="ieee")
FNUZ = float_format("E4M3FNUZ", 4, 3, bias=8, specials="fnuz")
FP16 = float_format("FP16", 5, 10, specials="ieee")
WIDE = float_format("E9M0", 9, 0)
TERNARY = table_format("ternary", [-1, 0, 1])
ALL = [E0M7, E3M4, E4M3, E5M2, FNUZ, FP16, WIDE, TERNARY]


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_formats_by_name():
    """A name means the installed format; an unknown one is an error with the nearest names."""
    x = normal(10)
    assert_same(fake_quantize(x, "E3M4"), fake_quantize(x, E3M4))
    assert_same(altcore.fake_quantize(x, "E3M4"), fake_quantize(x, E3M4))
    with pytest.raises(BadInput, match="E3N4"):
        fake_quantize(x, "E3N4")
    with pytest.raises(BadInput, match="a format or its name is needed, not int"):
        quantize(x, 8)


@pytest.mark.parametrize("fmt", ALL, ids=str)
def test_quantize_is_exact(fmt):
    """The pair (q, s): q on the grid, q · s what fake_quantize rounds."""
    x = normal(50, 7)
    for scaling in ("tensor", "power-of-two", "none"):
        q, s = quantize(x, fmt, scaling=scaling)
        assert q.shape == x.shape
        assert s.ndim == 0
        assert set(q.flatten().tolist()) <= set(fmt.values)
        if scaling == "none":
            assert s == 1
            assert_same(q, round_to_grid(x, fmt))
        else:
            wanted, r = scale_of(x.abs().max(), fmt, power_of_two=scaling != "tensor")
            assert_same(s, wanted)
            assert_same(q, round_to_grid(x, fmt, r=r))
    assert_same(
        (q := quantize(x, fmt))[0].mul(q[1]).to(x.dtype), fake_quantize(x, fmt, scale="amax")
    )


def test_quantize_keeps_the_largest():
    """Under exact scaling the largest magnitude stays what it was, to the last bit or so."""
    x = normal(1000)
    for fmt in ALL:
        y = fake_quantize(x, fmt, scale="amax")
        assert y.abs().max() == pytest.approx(x.abs().max().item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_fake_quantize_is_like_its_input(dtype):
    x = normal(4, 5).to(dtype)
    for scale in (None, 0.5, "amax", torch.tensor(0.5), torch.full((4, 1), 0.5)):
        y = fake_quantize(x, E3M4, scale=scale)
        assert (y.dtype, y.shape) == (x.dtype, x.shape)
    assert_same(fake_quantize(x, E3M4, scale=0.5), fake_quantize(x, E3M4, scale=torch.tensor(0.5)))
    assert_same(fake_quantize(x, E3M4, scale=0.5), fake_quantize(x * 2, E3M4) * 0.5)


def test_gradient_passes_straight_through():
    """The identity, by default: where the value was clipped or flushed, too."""
    x = torch.tensor([0.1, -40.0, 1e-9, 3.3], requires_grad=True)
    scale = torch.tensor(0.5, requires_grad=True)
    y = fake_quantize(x, E3M4, scale=scale)
    (y * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert x.grad.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert scale.grad is None
    assert not quantize(x, E3M4)[0].requires_grad
    assert fake_quantize(x.detach(), E3M4).requires_grad is False


def test_nan_and_infinity():
    """NaN comes out as NaN in every format; an infinity follows the overflow rule."""
    x = torch.tensor([math.nan, math.inf, -math.inf])
    for fmt in ALL:
        y = fake_quantize(x, fmt)
        assert torch.isnan(y).tolist() == [True, False, False]
        assert y[1:].tolist() == [fmt.max, -fmt.max] or fmt is WIDE
    assert fake_quantize(x, E5M2, overflow="inf")[1:].tolist() == [math.inf, -math.inf]
    assert torch.isnan(fake_quantize(x, E4M3, overflow="nan")).all()
    assert torch.isnan(fake_quantize(x, E4M3, scale="amax")).all()
    with pytest.raises(BadInput, match="overflow"):
        fake_quantize(x, E4M3, overflow="raise")
    with pytest.raises(BadInput, match="no inf code"):
        fake_quantize(x, E4M3, overflow="inf")


@pytest.mark.parametrize("fmt", ALL, ids=str)
def test_codes_come_back(fmt):
    """Decode, encode: every code of a value or of NaN or infinity, at several scales."""
    codes = torch.arange(len(fmt.code_values))
    for scale in (None, 0.5, torch.tensor(4.0)):
        values = decode(codes, fmt, scale=scale)
        overflow = "inf" if fmt.inf_codes else "saturate"
        back = encode(values, fmt, scale=scale, overflow=overflow)
        assert back.dtype == (torch.uint8 if fmt.bits <= 8 else torch.int32)
        numbers = ~torch.isnan(values)
        assert torch.equal(back[numbers].long(), codes[numbers])
        assert set(back[~numbers].tolist()) <= set(fmt.nan_codes)
        assert_same(decode(back, fmt, scale=scale), values)


def test_encode_rounds_first():
    x = torch.tensor([[1.03, -1.03], [1e9, -0.0]])
    assert_same(decode(encode(x, E4M3), E4M3), fake_quantize(x, E4M3))
    assert encode(torch.tensor(-0.0), FNUZ) == 0  # which has no -0
    assert encode(torch.tensor(-0.0), E4M3) == 0x80
    assert encode(torch.zeros(0, 3), E4M3).shape == (0, 3)


def test_encode_refuses_nan_without_a_code():
    x = torch.tensor([1.0, math.nan])
    assert encode(x, E4M3)[1] in E4M3.nan_codes
    assert encode(x, FNUZ)[1] == 0x80
    with pytest.raises(BadInput, match="format E3M4 has no NaN code"):
        encode(x, E3M4)


def test_decode_refuses():
    """Codes that the format does not have, and what are no codes."""
    with pytest.raises(BadInput, match="format ternary has codes 0 to 2"):
        decode(torch.tensor([3]), TERNARY)
    with pytest.raises(BadInput, match="codes 0 to 255"):
        decode(torch.tensor([-1]), E4M3)
    for bad in (torch.tensor([1.0]), torch.tensor([True]), [1]):
        with pytest.raises(BadInput, match="integer codes"):
            decode(bad, E4M3)


def test_ulp_distance():
    """Grid steps at one scale; -0 is 0, and distances to NaN are -1."""
    a = torch.tensor([1.0, -0.0, -(2.0**-9), 448.0, math.nan, 1.0])
    b = torch.tensor([1.25, 0.0, 2.0**-9, 1e9, 1.0, math.nan])
    assert ulp_distance(a, b, E4M3).tolist() == [2, 0, 2, 0, -1, -1]
    assert ulp_distance(b, a, E4M3).tolist() == [2, 0, 2, 0, -1, -1]
    assert ulp_distance(a[:1] * 4, b[:1] * 4, E4M3, scale=4).tolist() == [2]
    assert ulp_distance(torch.tensor(-1.0), torch.tensor(1.0), E0M7) == 254
    values = torch.tensor(E4M3.values)
    steps = ulp_distance(values[:, None], values[None, :], E4M3)
    places = torch.arange(len(values))
    assert torch.equal(steps, (places[:, None] - places[None, :]).abs())


@pytest.mark.parametrize(
    "scale",
    [
        0,
        -1.0,
        math.nan,
        math.inf,
        torch.tensor(0.0),
        torch.tensor(-2.0),
        torch.tensor([1.0, 0]),
        True,
    ],
)
def test_bad_scales(scale):
    x = normal(3)
    for call in (
        lambda: fake_quantize(x, E4M3, scale=scale),
        lambda: encode(x, E4M3, scale=scale),
        lambda: decode(torch.tensor([1]), E4M3, scale=scale),
        lambda: ulp_distance(x, x, E4M3, scale=scale),
    ):
        with pytest.raises(BadInput, match="scale is a"):
            call()


def test_bad_input():
    x = normal(3)
    with pytest.raises(BadInput, match="unknown scaling 'row'"):
        quantize(x, E4M3, scaling="row")
    with pytest.raises(BadInput, match="unknown scale 'max'"):
        fake_quantize(x, E4M3, scale="max")
    with pytest.raises(BadInput, match="int64"):
        fake_quantize(torch.tensor([1]), E4M3)
    with pytest.raises(BadInput, match="unknown rounding"):
        encode(x, E4M3, rounding="truncate")
    with pytest.raises(BadInput, match="needs a key"):
        fake_quantize(x, E4M3, rounding="stochastic")
    y = fake_quantize(x, E4M3, rounding="stochastic", key=1)
    assert set(y.tolist()) <= set(E4M3.values)
