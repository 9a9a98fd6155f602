"""The public functions: quantize, fake_quantize, codes, and where numbers stand on a grid."""

import bisect
import math

import numpy as np
import pytest
import torch
from format_checks import PATHS, assert_same, path
from torch.masked import masked_tensor

import altcore
from altcore import get_format
from altcore.errors import BadInput
from altcore.formats import BlockFormat, float_format, table_format
from altcore.numerics import compute_dtype, positions, round_blocks, round_to_grid, scale_of
from altcore.numerics.codes import decode, encode
from altcore.numerics.functional import (
    fake_quantize,
    grid_error,
    neighbours,
    quantize,
    stiffness,
    ulp_distance,
)
from altcore.numerics.packing import pack, unpack

E0M7 = float_format("E0M7", 0, 7)
E3M4 = float_format("E3M4", 3, 4)
E4M3 = float_format("E4M3", 4, 3, specials="fn")
E5M2 = float_format("E5M2", 5, 2, specials="ieee")
FNUZ = float_format("E4M3FNUZ", 4, 3, bias=8, specials="fnuz")
FP16 = float_format("FP16", 5, 10, specials="ieee")
WIDE = float_format("E9M0", 9, 0)
TERNARY = table_format("ternary", [-1, 0, 1])
NATURAL = table_format("natural", [0, 1, 2])
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


DRAWING = {
    "quantize": lambda x, **key: quantize(x, E3M4, rounding="stochastic", **key)[0],
    "by channel": lambda x, **key: quantize(x, E3M4, "channel", rounding="stochastic", **key)[0],
    "quantize blocks": lambda x, **key: quantize(x, "MXFP4", rounding="stochastic", **key)[0],
    "fake": lambda x, **key: fake_quantize(x, E3M4, rounding="stochastic", **key),
    "fake amax": lambda x, **key: fake_quantize(x, "NF4", "amax", rounding="stochastic", **key),
    "fake blocks": lambda x, **key: fake_quantize(x, "MXFP4", rounding="stochastic", **key),
    "encode": lambda x, **key: encode(x, E3M4, rounding="stochastic", **key).double(),
    "pack": lambda x, **key: pack(x, E3M4, rounding="stochastic", **key).codes.double(),
    "pack blocks": lambda x, **key: pack(x, "MXFP4", rounding="stochastic", **key).codes.double(),
}


@pytest.mark.parametrize("draw", DRAWING.values(), ids=DRAWING)
def test_torch_draws_a_key_where_there_is_none(draw):
    """So that its seed decides; a call with a key stays a function of that, and draws nothing."""
    x = normal(8, 64)
    torch.manual_seed(5)
    key = torch.randint(-(2**63), 2**63 - 1, ())
    after = torch.get_rng_state()
    torch.manual_seed(5)
    first, second = draw(x), None
    assert torch.equal(torch.get_rng_state(), after)
    second = draw(x)
    assert_same(first, draw(x, key=key))
    assert_same(first, draw(x, key=int(key)))
    assert not torch.equal(first, second)
    for way in PATHS:
        torch.manual_seed(5)
        with path(way):
            assert_same(draw(x.clone().requires_grad_()).detach(), first)
            assert_same(draw(x), second)
            state = torch.get_rng_state()
            draw(x, key=1)
            assert torch.equal(torch.get_rng_state(), state)


def test_keys_that_are_drawn_under_vmap():
    """As its randomness says: none, one for all, or one for each."""
    x = normal(1, 64).expand(3, 64)
    draw = DRAWING["fake"]
    with pytest.raises(BadInput, match=r"^key: one is drawn under vmap if"):
        torch.func.vmap(draw)(x)
    same = torch.func.vmap(draw, randomness="same")(x)
    assert torch.equal(same[0], same[1])
    different = torch.func.vmap(draw, randomness="different")(x)
    assert len(different.unique(dim=0)) == 3


def test_only_stochastic_rounding_draws():
    state = torch.get_rng_state()
    fake_quantize(normal(4), E3M4)
    encode(normal(4), E3M4)
    quantize(normal(32), "MXFP4")
    assert torch.equal(torch.get_rng_state(), state)
    for wrong in (torch.tensor([1]), [1.0]):
        with pytest.raises(BadInput, match=r"^x: "):
            fake_quantize(wrong, E3M4, rounding="stochastic")
    with pytest.raises(BadInput, match="needs a key"):  # what runs are made of draws no keys
        round_to_grid(normal(3), E4M3, rounding="stochastic")


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
        (scaled * r).clamp(low, high).backward(upstream.to(wide) / r)
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


# -------------------------------------------------------------------------------- the grid


def slow_neighbours(x, grid):
    """By a search: the largest below and the smallest above, or NaN."""
    below, above = bisect.bisect_left(grid, x), bisect.bisect_right(grid, x)
    missing = math.isnan(x)
    return (
        math.nan if missing or below == 0 else grid[below - 1],
        math.nan if missing or above == len(grid) else grid[above],
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("fmt", ALL, ids=str)
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
        wanted = [slow_neighbours(v, grid.tolist()) for v in x.double().tolist()]
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
    for fmt in ALL:
        s = torch.tensor(0.25, dtype=compute_dtype(x.dtype, fmt))
        assert_same(stiffness(x, fmt), positions.interval_width(x, fmt))
        assert_same(stiffness(x, fmt, scale=0.25), positions.interval_width(x, fmt, s))
        assert_same(grid_error(x, fmt), positions.nearest_error(x, fmt))
        error = fake_quantize(x, fmt, scale=0.25) - x
        assert_same(grid_error(x, fmt, scale=0.25).float(), error)
    assert altcore.stiffness(torch.tensor(1.0), "E3M4") == 1 / 16
    # On a grid point of a scaled table: the interval away from zero, whatever x / s rounds to.
    values = torch.tensor([v for v in get_format("LOG4_3-by-log").values if v > 0])
    for scale in (0.3, 0.7, 1.1):
        widths = stiffness(values * scale, "LOG4_3-by-log", scale=scale)
        assert_same(widths[:-1], values.diff() * scale)
    assert altcore.grid_error(torch.tensor(1.03125 + 2.0**-20), "E3M4") == 2**-5 - 2.0**-20


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


def test_blocks_round_as_asked():
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


# ------------------------------------------------------- what is no tensor of numbers, each alone

X = normal(4, 4)
TAKES_TENSOR = {
    "quantize": (lambda t: quantize(t, E4M3), "x"),
    "quantize, channel": (lambda t: quantize(t, E4M3, "channel"), "x"),
    "quantize, blocks": (lambda t: quantize(t, "MXFP4"), "x"),
    "fake_quantize": (lambda t: fake_quantize(t, E4M3), "x"),
    "fake_quantize, amax": (lambda t: fake_quantize(t, E4M3, "amax"), "x"),
    "fake_quantize, blocks": (lambda t: fake_quantize(t, "MXFP4"), "x"),
    "fake_quantize, scale": (lambda t: fake_quantize(X, E4M3, t), "scale"),
    "encode": (lambda t: encode(t, E4M3), "x"),
    "encode, scale": (lambda t: encode(X, E4M3, t), "scale"),
    "decode, scale": (lambda t: decode(torch.ones(4, 4).long(), E4M3, t), "scale"),
    "ulp_distance, first": (lambda t: ulp_distance(t, X, E4M3), "a"),
    "ulp_distance, second": (lambda t: ulp_distance(X, t, E4M3), "b"),
    "ulp_distance, scale": (lambda t: ulp_distance(X, X, E4M3, t), "scale"),
    "stiffness": (lambda t: stiffness(t, E4M3), "x"),
    "neighbours": (lambda t: neighbours(t, E4M3), "x"),
    "grid_error": (lambda t: grid_error(t, E4M3), "x"),
    "grid_error, scale": (lambda t: grid_error(X, E4M3, t), "scale"),
    "pack": (lambda t: altcore.pack(t, E4M3), "x"),
    "pack, scale": (lambda t: altcore.pack(X, E4M3, t), "scale"),
}
NO_NUMBERS = {
    "sparse": (lambda: X.to_sparse(), r"dense.*sparse_coo.* {0}\.to_dense\(\)"),
    "mkldnn": (lambda: X.to_mkldnn(), r"dense.* {0}\.to_dense\(\)"),
    "nested": (lambda: torch.nested.nested_tensor([X, X]), "dense.*nested.* parts"),
    "quantized": (
        lambda: torch.quantize_per_tensor(X, 0.1, 0, torch.qint8),
        r"qint8.* {0}\.dequantize\(\)",
    ),
    "integer": (lambda: X.int(), r"float32.*not torch\.int32: give {0}\.float\(\)"),
    "boolean": (lambda: X > 0, r"float32.*not torch\.bool"),
    "float8": (lambda: X.to(torch.float8_e4m3fn), r"float32.*not torch\.float8_e4m3fn"),
    "complex": (lambda: X.to(torch.complex64), r"complex64: give torch\.view_as_real\({0}\)"),
    "meta": (lambda: X.to("meta"), "no values.*CPU or GPU"),
    "jagged": (
        lambda: torch.nested.nested_tensor([X, X[:2]], layout=torch.jagged),
        "dense.*nested.* parts",
    ),
    "masked": (lambda: masked_tensor(X, X > 0), r"ordinary.*masked.* {0}\.to_tensor\(0\.0\)"),
    "lazy": (lambda: torch.nn.UninitializedParameter(), "ordinary.*lazy.*run its module once"),
}


@pytest.mark.filterwarnings("ignore:.*(deprecated|prototype)")
@pytest.mark.parametrize("function", TAKES_TENSOR)
@pytest.mark.parametrize("tensor", NO_NUMBERS)
def test_what_cannot_be_rounded_is_named(function, tensor):
    """With the argument, and what would be right, in place of an error of torch's."""
    call, name = TAKES_TENSOR[function]
    make, says = NO_NUMBERS[tensor]
    with pytest.raises(BadInput, match=f"^{name}: .*{says.format(name)}"):
        call(make())


@pytest.fixture
def distributed():
    """A tensor of torch.distributed, in a group of one."""
    from torch import distributed
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield distribute_tensor(X.clone(), init_device_mesh("cpu", (1,)), [Shard(0)])
    distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without it")
@pytest.mark.parametrize("function", TAKES_TENSOR)
def test_a_distributed_tensor_is_named(function, distributed):
    """Of which each process has a part: reinterpreted bit by bit it gave zeros, or an error."""
    call, name = TAKES_TENSOR[function]
    with pytest.raises(BadInput, match=rf"^{name}: .*distributed.*{name}\.to_local\(\) or "):
        call(distributed)


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize("function", [f for f in TAKES_TENSOR if not f.endswith("scale")])
def test_recording_by_jit_is_refused(function):
    """It would record the memory that a kernel writes to, and not what is written."""
    with pytest.raises(BadInput, match=r"^[xab]: torch\.jit\.trace cannot record"):
        torch.jit.trace(TAKES_TENSOR[function][0], X)


@pytest.mark.slow
@pytest.mark.parametrize("given", [("E4M3", "amax"), ("NF4", 0.3), ("MXFP4",)])
def test_torch_export_records_the_rounding(given):
    class Rounds(torch.nn.Module):
        def forward(self, x):
            return fake_quantize(x, get_format(given[0]), *given[1:])

    program = torch.export.export(Rounds(), (torch.zeros(4, 4),), strict=False)
    assert_same(program.module()(X), fake_quantize(X, *given))


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_codes_that_are_none_are_named():
    for given, says in (
        (torch.eye(3).int().to_sparse(), "dense"),
        (torch.quantize_per_tensor(X, 0.1, 0, torch.quint8), "dequantize"),
        (X > 0, "integer codes"),
        (torch.ones(3, dtype=torch.uint8, device="meta"), "no values"),
        ([1], "a tensor is needed, not list"),
    ):
        with pytest.raises(BadInput, match=f"^codes: .*{says}"):
            decode(given, E4M3)


@pytest.mark.parametrize("function", [f for f in TAKES_TENSOR if f.endswith("scale")])
@pytest.mark.parametrize("shape", [(3,), (4, 3), (2, 4, 4), (0,)])
def test_a_scale_that_does_not_broadcast_is_named(function, shape):
    """To the tensor as it is: a result of another shape is no result."""
    says = "one scale, not" if function.startswith("pack") else r"^scale: shape.* \[4, 4\]"
    with pytest.raises(BadInput, match=says):
        TAKES_TENSOR[function][0](torch.ones(shape))


def test_a_scale_may_have_what_both_of_a_distance_come_to():
    """One for each pair, as the shapes of what is compared broadcast."""
    column, row = normal(4, 1), normal(1, 4)
    scale = torch.rand(4, 4, generator=torch.Generator().manual_seed(1)) + 0.5
    found = ulp_distance(column, row, E4M3, scale)
    whole = ulp_distance(column.expand(4, 4), row.expand(4, 4), E4M3, scale)
    assert_same(found, whole)
    with pytest.raises(BadInput, match=r"^a and b: shapes \[4, 2\] and \[3\] do not broadcast"):
        ulp_distance(normal(4, 2), normal(3), E4M3)


@pytest.mark.parametrize("key", ["a", 1.5, True, [1], torch.ones(2).long(), torch.tensor(1.0)])
def test_a_key_is_a_whole_number(key):
    with pytest.raises(BadInput, match=r"^key: an int or an int64 tensor"):
        fake_quantize(X, E4M3, rounding="stochastic", key=key)


@pytest.mark.parametrize("name", [None, 3, ["nearest-even"], X])
def test_rules_are_names(name):
    for call in (
        lambda: fake_quantize(X, E4M3, rounding=name),
        lambda: fake_quantize(X, E4M3, overflow=name),
        lambda: fake_quantize(X, E4M3, gradient=name),
    ):
        with pytest.raises(BadInput, match="unknown"):
            call()


def test_numpy_s_numbers_are_python_s():
    """A scale, an axis, a block's length and a format's widths may be numpy's."""
    x, eight = torch.randn(4, 16), np.int64(8)
    assert torch.equal(fake_quantize(x, E3M4, np.float32(0.5)), fake_quantize(x, E3M4, 0.5))
    assert torch.equal(fake_quantize(x, E3M4, np.int64(2)), fake_quantize(x, E3M4, 2))
    assert torch.equal(unpack(pack(x, E3M4, np.float32(0.5))), unpack(pack(x, E3M4, 0.5)))
    for scaling in ("channel", "block"):
        found = quantize(x, E3M4, scaling=scaling, axis=np.int64(0), block=eight)
        wanted = quantize(x, E3M4, scaling=scaling, axis=0, block=8)
        assert all(map(torch.equal, found, wanted))
    assert float_format("E3M4", np.int64(3), np.int64(4), bias=np.int8(3)) == E3M4
    mine = BlockFormat("MINE", E3M4, block=eight)
    assert mine == BlockFormat("MINE", E3M4, block=8)
    assert torch.equal(fake_quantize(x, mine, axis=np.int64(0)), fake_quantize(x, mine, axis=0))


def test_what_is_no_number_is_refused_by_name():
    x = torch.randn(4, 32)
    with pytest.raises(BadInput, match=r"axis: .* has no axis 'rows'"):
        pack(x, "MXFP4", axis="rows")
    with pytest.raises(BadInput, match=r"MINE: the bias is a whole number, not 7\.5"):
        float_format("MINE", 4, 3, bias=7.5)
    with pytest.raises(BadInput, match="what pack returns is needed, not Tensor"):
        unpack(x)
