"""The public functions: quantize, fake_quantize, codes, and where numbers stand on a grid."""

import math

import pytest
import torch
from format_checks import PATHS, assert_same, path
from grid_formats import E0M7, E3M4, E4M3, E5M2, FACE, FNUZ, NATURAL, TERNARY, WIDE, normal

import altcore
from altcore import get_format
from altcore.errors import BadInput
from altcore.formats import BlockFormat, code_format, round_scalar
from altcore.numerics import compute_dtype, round_blocks, round_to_grid, scale_of
from altcore.numerics.codes import decode, encode
from altcore.numerics.functional import (
    fake_quantize,
    grid_error,
    neighbours,
    quantize,
    stiffness,
    ulp_distance,
)


def test_formats_by_name():
    """A name means the installed format; an unknown one is an error with the nearest names."""
    x = normal(10)
    assert_same(fake_quantize(x, "E3M4"), fake_quantize(x, E3M4))
    assert_same(altcore.fake_quantize(x, "E3M4"), fake_quantize(x, E3M4))
    with pytest.raises(BadInput, match="E3N4"):
        fake_quantize(x, "E3N4")
    with pytest.raises(BadInput, match="a format or its name is needed, not int"):
        quantize(x, 8)


@pytest.mark.parametrize("fmt", FACE, ids=str)
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
    for fmt in FACE:
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
    for fmt in FACE:
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


@pytest.mark.parametrize("fmt", FACE, ids=str)
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


def test_encode_names_the_infinity_that_has_no_code():
    """A table without zero overflows downwards, too, and to -inf like an unsigned format."""
    x = torch.tensor([-5.0, 0.1, 1.4, 3.0])
    both = code_format("BOTH", [1.0, 2.0, math.inf, -math.inf])
    assert encode(x, both, overflow="inf").tolist() == [3, 3, 0, 2]
    above = code_format("ABOVE", [1.0, 2.0, math.inf])
    assert fake_quantize(x, above, overflow="inf").tolist() == [-math.inf, -math.inf, 1, math.inf]
    with pytest.raises(BadInput, match=r"^-inf cannot be encoded: format ABOVE has neither"):
        encode(x, above, overflow="inf")
    assert encode(x, above).tolist() == [0, 0, 0, 1]
    with pytest.raises(BadInput, match=r"^NaN cannot be encoded: format ABOVE has no NaN code"):
        encode(torch.tensor([-5.0, math.nan]), above, overflow="inf")
    missing = code_format("MISSING", [1.0, 2.0, math.inf, math.nan])
    assert encode(x, missing, overflow="inf").tolist() == [3, 3, 0, 2]


def test_decode_refuses():
    """Codes that the format does not have, and what are no codes."""
    with pytest.raises(BadInput, match="format ternary has codes 0 to 2"):
        decode(torch.tensor([3]), TERNARY)
    with pytest.raises(BadInput, match="codes 0 to 255"):
        decode(torch.tensor([-1]), E4M3)
    for bad in (torch.tensor([1.0]), torch.tensor([True])):
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
        torch.tensor([1.0, math.inf, 1.0]),
        torch.tensor([1.0, math.nan, 1.0]),
        1e-60,
        1e60,
        torch.tensor(1e-60, dtype=torch.float64),  # 0 in float32, and infinity
        torch.tensor(1e60, dtype=torch.float64),
        torch.tensor([1.0, 1e-60, 1.0], dtype=torch.float64),
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


@pytest.mark.parametrize("scale", [1e-60, 1e60])
def test_scales_that_float64_holds(scale):
    """A number and a tensor are one scale, and refused only in float32."""
    x = normal(3).double() * scale
    wanted = [round_scalar(v, E4M3) * scale for v in (x * (1 / scale)).tolist()]
    for given in (scale, torch.tensor(scale, dtype=torch.float64)):
        assert fake_quantize(x, E4M3, given).tolist() == wanted


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


# ------------------------------------------------------------------------- clipped gradients


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("fmt", [E4M3, E0M7, TERNARY, NATURAL, WIDE], ids=str)
def test_clipped_gradient_is_that_of_a_clamp(fmt, dtype):
    """As if the scaled value had been clamped: nothing outside, all of it on the ends."""
    low, high = fmt.values[0], fmt.values[-1]
    wide = compute_dtype(dtype, fmt)
    at = torch.tensor([low, high, low, high, 0.0], dtype=wide)
    to = torch.tensor([-math.inf, math.inf, 0.0, 0.0, 1.0], dtype=wide)
    x = torch.cat([at, torch.nextafter(at, to), 2 * at, to[:2]])
    for scale in (None, 0.5, torch.tensor(4.0)):
        given = (x * (1.0 if scale is None else scale)).to(dtype).detach().requires_grad_()
        upstream = torch.arange(1.0, len(x) + 1).to(dtype)
        fake_quantize(given, fmt, scale=scale, gradient="clipped").backward(upstream)
        scaled = given.detach().to(wide, copy=True).requires_grad_()
        r = 1.0 if scale is None else 1 / scale
        y = scaled * r
        # Not all versions of torch let a gradient through a clamp's own ends.
        clamped = torch.where((y >= low) & (y <= high), y, y.detach().clamp(low, high))
        clamped.backward(upstream.to(wide) / r)
        assert torch.equal(given.grad.to(wide), scaled.grad)


def test_clipped_gradient_under_amax_is_the_identity():
    """No magnitude is too large then, though fl(x · r) passes the format's in some tensors."""
    passed = 0
    for seed in range(50):
        x = torch.randn(20, generator=torch.Generator().manual_seed(seed)).requires_grad_()
        _, r = scale_of(x.detach().abs().max(), E4M3)
        passed += bool((x * r).abs().max() > 448)
        fake_quantize(x, E4M3, scale="amax", gradient="clipped").sum().backward()
        assert (x.grad == 1).all()
    assert passed > 0
    x = torch.tensor([1.0, -0.5, 0.25], requires_grad=True)  # a sign that the format lacks
    fake_quantize(x, NATURAL, scale="amax", gradient="clipped").sum().backward()
    assert x.grad.tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("way", PATHS)
@pytest.mark.parametrize("overflow", ["inf", "nan", "raise"])
def test_nothing_overflows_under_amax(overflow, way):
    """Rounded up, fl(x · r) is cut at the largest value that it passes by a unit in the last."""
    passed = 0
    with path(way):
        for seed in range(40):
            x = torch.randn(4, 16, generator=torch.Generator().manual_seed(seed))
            for scaling, axes in (("tensor", None), ("channel", 1), ("block", 1)):
                largest = x.abs().amax(axes, keepdim=axes is not None)
                fmt = FNUZ if overflow == "nan" else E5M2
                s, r = scale_of(largest, fmt)
                y = (x * r).flatten().tolist()
                passed += max(map(abs, y)) > fmt.max
                wanted = [round_scalar(min(max(v, -fmt.max), fmt.max), fmt, "up") for v in y]
                block = 16 if scaling == "block" else None
                given = {"rounding": "up", "overflow": overflow}
                q, _ = quantize(x, fmt, scaling, block=block, **given)
                assert q.flatten().tolist() == wanted
                if scaling == "tensor":
                    for z in (x, x.clone().requires_grad_()):
                        fake = fake_quantize(z, fmt, "amax", **given).detach()
                        assert torch.equal(fake, q * s)
    assert passed > 10


def test_what_overflows_under_amax():
    """The sign that a format lacks; and a rule for which it has no code is refused."""
    for overflow, given in (("inf", -math.inf), ("nan", math.nan)):
        fmt = code_format("POSITIVE", [1.0, 2.0, 4.0, math.inf, math.nan])
        found = fake_quantize(torch.tensor([4.0, -4.0]), fmt, "amax", overflow=overflow)
        assert_same(found, torch.tensor([4.0, given]))
    for call in (quantize, lambda *a, **k: fake_quantize(*a, "amax", **k)):
        with pytest.raises(BadInput, match="E3M4 has no inf"):
            call(normal(3), E3M4, overflow="inf")
        for rounding in ("up", "stochastic"):
            with pytest.raises(BadInput, match="POSITIVE: under a scale by the largest"):
                call(normal(3).abs(), fmt, rounding=rounding, overflow="nan")


def test_clipped_gradient_of_what_is_no_number():
    """NaN passes its gradient, an infinity does not, and no gradient makes NaN of a clipped one."""
    x = torch.tensor([math.nan, math.inf, -math.inf, 1e9, 1.0], requires_grad=True)
    y = fake_quantize(x, E4M3, gradient="clipped")
    y.backward(torch.tensor([1.0, math.nan, math.inf, math.nan, 5.0]))
    assert x.grad.tolist() == [1.0, 0.0, 0.0, 0.0, 5.0]
    assert_same(y.detach(), fake_quantize(x.detach(), E4M3))


def test_gradients_by_name():
    with pytest.raises(BadInput, match=r"unknown gradient 'cliped' \(did you mean clipped\?\)"):
        fake_quantize(normal(3), E4M3, gradient="cliped")


# --------------------------------------------------------------------------- channels and blocks


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_channel_and_block_scales(dtype, axis):
    """Each slice, and each piece of one, is quantized as a tensor of its own would be."""
    x = (normal(5, 37, 9) * torch.logspace(-3, 3, 37)[:, None]).to(dtype)
    lines = x.movedim(axis, -1)
    q, s = quantize(x, E4M3, "channel", axis=axis)
    assert s.shape == tuple(1 if i == axis % 3 else n for i, n in enumerate(x.shape))
    blocked, scales = quantize(x, E4M3, "block", axis=axis, block=4)
    assert scales.shape == q.shape == blocked.shape == x.shape
    assert {t.dtype for t in (q, s, blocked, scales)} == {compute_dtype(dtype, E4M3)}
    pairs = [t.movedim(axis, -1) for t in (q, s, blocked, scales)]
    for i in range(lines.shape[0]):
        for j in range(lines.shape[1]):
            line, values, scale, pieces, its = lines[i, j], *(t[i, j] for t in pairs)
            wanted, s = quantize(line, E4M3)
            assert_same(values, wanted)
            assert scale == s
            for start in range(0, len(line), 4):
                wanted, s = quantize(line[start : start + 4].clone(), E4M3)
                assert_same(pieces[start : start + 4], wanted)
                assert (its[start : start + 4] == s).all()


@pytest.mark.parametrize("axis", [0, 1])
def test_blocks_are_those_of_the_block_format(axis):
    """Exact amax scales of blocks, two ways."""
    x = normal(33, 45)
    q, s = quantize(x, E4M3, "block", axis=axis, block=8)
    fmt = BlockFormat("E4M3 in blocks of 8", E4M3, 8, "amax")
    assert_same(fake_quantize(x, fmt, axis=axis), q * s)


def test_scalings_that_cannot_be():
    x = normal(3, 4)
    for axis in (2, -3, 0.5, True):
        for scaling in ("channel", "block"):
            with pytest.raises(BadInput, match=r"2 dimension.*no axis"):
                quantize(x, E4M3, scaling, axis=axis)
    with pytest.raises(BadInput, match="no axis -1"):
        quantize(torch.tensor(1.0), E4M3, "channel")
    for block in (0, -1, 2.0, True):
        with pytest.raises(BadInput, match="at least 1 element"):
            quantize(x, E4M3, "block", block=block)
    for shape in ((0, 4), (4, 0)):
        for scaling in ("channel", "block"):
            for axis in (0, 1):
                q, _ = quantize(torch.zeros(shape), E4M3, scaling, axis=axis)
                assert q.shape == shape


BLOCKS = ["MXFP8-E4M3", "MXFP4", "MXFP4-rceil", "MXINT8", "NVFP4", "NVFP4-square"]


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("axis", [0, -1])
def test_block_formats(name, axis):
    """``q`` holds elements times their block's scale, ``s`` is the tensor's own."""
    x = normal(40, 70) * torch.logspace(-2, 2, 70)
    fmt = get_format(name)
    q, s = quantize(x, name, axis=axis)
    found = round_blocks(x, fmt, axis=axis)
    assert_same(q, found.values)
    assert s.shape == ()
    assert (s != 1) == name.startswith("NV")
    wanted = (q.double() * s.double()).float()
    for dtype in (torch.float32, torch.bfloat16):
        y = x.to(dtype, copy=True).requires_grad_()
        out = fake_quantize(y, fmt, axis=axis)
        assert out.dtype == dtype
        if dtype == torch.float32:
            assert_same(out.detach(), wanted)
        out.backward(torch.ones_like(out) * 3)
        assert (y.grad == 3).all()


def test_float64_blocks_are_rounded_once():
    """A tie of E2M1 and next to none: by way of float32 it would be one."""
    x = torch.tensor([4.0, 1.25 + 2.0**-40, 1.25], dtype=torch.float64)
    q, s = quantize(x, "MXFP4")
    assert q.dtype == s.dtype == torch.float64
    assert q.tolist() == fake_quantize(x, "MXFP4").tolist() == [4.0, 1.5, 1.0]


def test_blocks_round_as_asked_cache():
    """Rounding and key reach the elements; under a scale of 1 they are the element format's."""
    x = torch.linspace(-6, 6, 64)
    for rounding in ("to-zero", "up", "log-nearest"):
        assert_same(
            fake_quantize(x, "MXFP4", rounding=rounding),
            fake_quantize(x, "E2M1", rounding=rounding),
        )
    draws = [fake_quantize(x, "MXFP4", rounding="stochastic", key=k) for k in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_block_formats_refuse():
    """What they bring themselves, and what has no meaning without the blocks' scales."""
    x = normal(3, 32)
    cases = [
        (lambda: quantize(x, "MXFP4", "tensor"), "MXFP4 brings its own scaling"),
        (lambda: quantize(x, "MXFP4", overflow="inf"), "overflow must be saturate"),
        (lambda: quantize(x, "MXFP4", axis=2), "no axis 2"),
        (lambda: quantize(x, "MXFP4", rounding="neerest"), "unknown rounding"),
        (lambda: fake_quantize(x, "MXFP4", scale="amax"), "brings its own scales"),
        (lambda: fake_quantize(x, "MXFP4", scale=1.0), "brings its own scales"),
        (lambda: fake_quantize(x, "MXFP4", overflow="raise"), "overflow must be saturate"),
        (lambda: fake_quantize(x, "MXFP4", gradient="clipped"), "straight-through"),
        (lambda: fake_quantize(x.long(), "MXFP4"), "int64"),
        (lambda: encode(x, "MXFP4"), "altcore.pack and altcore.unpack"),
        (lambda: decode(torch.tensor([1]), "MXFP4"), "altcore.pack and altcore.unpack"),
        (lambda: ulp_distance(x, x, "MXFP4"), "element format, E2M1, with a scale"),
        (lambda: neighbours(x, "MXFP4"), "element format, E2M1, with a scale"),
        (lambda: stiffness(x, "MXFP4"), "element format, E2M1, with a scale"),
        (lambda: grid_error(x, "NVFP4"), "element format, E2M1, with a scale"),
    ]
    for call, said in cases:
        with pytest.raises(BadInput, match=said):
            call()
