"""What the compiled kernels take for granted of memory: shapes, strides, dtypes and devices.

Every function that hands a tensor to them gives, for any tensor, what the torch path gives, bit for
bit. `make test-exhaustive` runs this file with kernels that check each access, too.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from format_checks import PATHS, assert_same, needs_vmap, path
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import DTYPES, LAYOUTS, SHAPES, SIZES, numbers, scales, tensors

import altcore
from altcore import BadInput, get_format
from altcore.formats import BlockFormat, float_format, table_format
from altcore.formats.blocks import RULES
from altcore.numerics import (
    Meters,
    Rule,
    amax,
    count_small,
    fake_blocks,
    fake_round,
    follow_flips,
    inner_products,
    moments,
    ordinal,
    round_blocks,
    round_scaled,
    round_to_grid,
    scale_output,
)
from altcore.numerics.kernels import build

E4M3 = float_format("E4M3", 4, 3, specials="fn")
FORMATS = [
    E4M3,
    float_format("E1M2", 1, 2, specials="ieee"),  # the largest value is a subnormal one
    float_format("E1M0", 1, 0),
    float_format("E5M2", 5, 2, specials="ieee"),
    float_format("E8M2", 8, 2, specials="ieee"),  # without a number whose addition rounds
    float_format("flat", 3, 2, subnormals=False),
    table_format("few", [-3, -0.7, 0, 0.1, 0.5, 4]),
    table_format("many", [k * abs(k) / 64 for k in range(-90, 91)]),
    get_format("posit8_1"),
]
ROUNDINGS = st.sampled_from(
    ["nearest-even", "nearest-away", "to-zero", "up", "down", "stochastic", "log-nearest"]
)
available = pytest.mark.skipif(build.library() is None, reason="no C compiler")


def alike(make, close=()):
    """`make` gives the same tensors on both paths; those at the indices `close`, nearly."""
    found = []
    for way in PATHS:
        with path(way):
            found.append(make())
    assert len(found[0]) == len(found[1])
    for i, (wanted, got) in enumerate(zip(*found, strict=True)):
        assert got.shape == wanted.shape
        if i in close:
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=0, equal_nan=True)
        else:
            assert_same(got.contiguous(), wanted.contiguous())


def sums():
    return torch.zeros(4, dtype=torch.int64), torch.zeros(2, dtype=torch.float64)


# ------------------------------------------------------------------------ both paths, any tensor


@available
@settings(max_examples=300)
@given(data=st.data(), x=tensors(), fmt=st.sampled_from(FORMATS), rounding=ROUNDINGS)
def test_rounding(data, x, fmt, rounding):
    r, s = data.draw(scales(tuple(x.shape))), data.draw(scales(tuple(x.shape)))
    counted = data.draw(st.booleans())
    rules = ["saturate", *["inf"] * bool(fmt.inf_codes), *["nan"] * bool(fmt.nan_codes)]
    kinds = {"rule": Rule(rounding, data.draw(st.sampled_from(rules))), "key": 5}

    def make():
        counts, errors = sums()
        more = {"meters": Meters(counts, errors)} if counted else {}
        q = round_to_grid(x, fmt, r=r, **kinds, **more)
        return q, fake_round(x, fmt, r=r, s=s, **kinds, **more), counts, errors

    alike(make, close=(3,))


@available
@settings(max_examples=150)
@given(
    x=tensors(),
    fmt=st.sampled_from(FORMATS),
    rounding=ROUNDINGS,
    by_power=st.booleans(),
    fake=st.booleans(),
    counted=st.booleans(),
)
def test_rounding_by_its_own_scale(x, fmt, rounding, by_power, fake, counted):
    def make():
        counts, errors = sums()
        kinds = {"rule": Rule(rounding), "key": 5, "power_of_two": by_power, "fake": fake}
        if counted:
            kinds |= {"meters": Meters(counts, errors)}
        return *round_scaled(x, fmt, **kinds), counts, errors, amax(x)

    alike(make, close=(4,))


LENGTHS = st.sampled_from([1, 2, 3, 31, 32, 33, 48])


@available
@settings(max_examples=300)
@given(
    data=st.data(),
    x=tensors(st.lists(LENGTHS, min_size=1, max_size=3).map(tuple)),
    rule=st.sampled_from(RULES),
    rounding=ROUNDINGS,
)
def test_blocks(data, x, rule, rounding):
    """Lengths repeat, so that an axis is as long as another, and as a block."""
    element = data.draw(st.sampled_from([get_format("E2M1"), E4M3, FORMATS[-2]]))
    block = data.draw(st.sampled_from([1, 2, 3, 16, 32, 48, 2**20, 2**63, 2**200]))
    square = x.ndim > 1 and data.draw(st.booleans())
    scale = E4M3 if rule == "two-level" else None
    fmt = BlockFormat("MINE", element, block, rule, scale, is_square=square)
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    counted = data.draw(st.booleans())

    def make():
        counts, errors = sums()
        kinds = {"axis": axis, "rule": Rule(rounding), "key": 5}
        if counted:
            kinds |= {"meters": Meters(counts, errors)}
        found = round_blocks(x, fmt, **kinds)
        scale = torch.zeros(()) if found.scale is None else found.scale
        fake = fake_blocks(x, fmt, **kinds)
        return found.values, scale, found.scales, found.inverse, fake, counts, errors

    alike(make, close=(6,))


@available
@settings(max_examples=100)
@given(data=st.data(), shape=st.lists(SIZES, min_size=1, max_size=2).map(tuple))
def test_blocks_of_tensors_without_elements(data, shape):
    x = data.draw(tensors(st.permutations([*shape, 0]).map(tuple)))
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    fmt = get_format(data.draw(st.sampled_from(["MXFP4", "NVFP4"])))
    alike(lambda: [round_blocks(x, fmt, axis=axis).values, fake_blocks(x, fmt, axis=axis)])


@available
@settings(max_examples=150)
@given(data=st.data(), shape=SHAPES)
def test_outputs(data, shape):
    """A bias and scales for each row, each column, each channel, or all of it."""
    dtypes = [data.draw(st.sampled_from(DTYPES)) for _ in range(2)]
    y = numbers(shape, data.draw(st.integers(0, 20))).to(dtypes[0])
    y = y.to(memory_format=torch.channels_last) if y.ndim == 4 and data.draw(st.booleans()) else y
    pair = data.draw(scales(shape)), data.draw(scales(shape))
    bias = data.draw(scales(shape))
    alike(lambda: [scale_output(y.clone(), pair, bias, dtypes[1])])


@available
@settings(max_examples=150)
@given(data=st.data(), shape=SHAPES)
def test_passes_that_add_up(data, shape):
    x, y = (data.draw(tensors(st.just(shape))).detach() for _ in range(2))
    x, y = x.nan_to_num(0.5, 2.0, 2.0).clamp(-1e4, 1e4), y.nan_to_num().clamp(-1e4, 1e4)
    r = data.draw(scales(()))
    # What was ordinary again after nan_to_num lies in memory as it is: so, once more.
    layout = LAYOUTS[data.draw(st.sampled_from([n for n in LAYOUTS if n != "no memory"]))]
    x = layout(x)
    alike(lambda: [inner_products(x, y), count_small(x, 0.4, r)], close=(0,))
    if x.numel():
        alike(lambda: [moments(x)[:2]], close=(0,))


@available
@settings(max_examples=100)
@given(data=st.data(), x=tensors(), fmt=st.sampled_from(FORMATS))
def test_positions(data, x, fmt):
    q = round_to_grid(x, fmt)
    layout = LAYOUTS[data.draw(st.sampled_from([n for n in LAYOUTS if n != "no memory"]))]
    alike(lambda: [ordinal(layout(q), fmt)])


@available
@settings(max_examples=100)
@given(data=st.data(), shape=SHAPES, dtype=st.sampled_from(DTYPES))
def test_flips(data, shape, dtype):
    before, after, earlier = (data.draw(tensors(st.just(shape), (dtype,))) for _ in range(3))
    kept = earlier.detach().clone(memory_format=torch.contiguous_format)
    spaced = data.draw(st.booleans())
    at = torch.arange(math.prod(shape), dtype=torch.int32).reshape(shape) % 5

    def make():
        past = torch.stack([kept, kept], -1)[..., 0] if spaced else kept.clone()
        when = at.clone()
        return follow_flips(before, after, past, when, 9, since=3), past, when

    alike(make)


# ----------------------------------------------------------------------------- known by examples


@pytest.mark.parametrize("shape", [(3, 4, 1, 1), (3, 4, 1), (3, 4, 1, 1, 1), (2, 4, 3, 3), (4,)])
def test_the_bias_of_an_output(shape):
    """One number for each channel, however many positions there are; or one for all."""
    y = torch.zeros(shape)
    channels = torch.arange(4.0)
    bias = channels.reshape(4, *(1 for _ in shape[2:])) if len(shape) > 1 else torch.tensor(0.5)
    for dtype in DTYPES:
        made = scale_output(y.clone(), (None, None), bias, dtype)
        assert torch.equal(made.float(), (y + bias))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_convolution_with_one_position(dims):
    """As every squeeze-and-excite block has: its bias, and nothing of the memory behind it."""
    conv = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)[dims - 1](6, 5, 1)
    x = torch.randn(4, 6, *(1,) * dims)
    exact = conv(x)
    model = torch.nn.Sequential(conv)
    altcore.quantize_model(model, {"weight": "FP16", "activation": "FP16"})
    torch.testing.assert_close(model(x), exact, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("shape", [(48, 48), (32, 32, 32), (5, 48, 5), (33, 33)])
def test_scales_lie_along_the_axis(shape):
    """On each path, for every axis: those of the lines of blocks one by one."""
    x, fmt = numbers(shape).clamp(-1e3, 1e3).nan_to_num(), get_format("MXFP4")
    for way in PATHS:
        for axis in range(len(shape)):
            lines = x.movedim(axis, -1).reshape(-1, shape[axis])
            wanted = torch.cat([round_blocks(line.clone(), fmt).scales for line in lines])
            with path(way):
                assert torch.equal(round_blocks(x, fmt, axis=axis).scales, wanted)


@pytest.mark.parametrize("rounding", ["nearest-even", "nearest-away", "up", "down", "stochastic"])
@pytest.mark.parametrize("way", PATHS)
def test_between_the_largest_value_and_the_smallest_normal_one(way, rounding):
    """There is nothing, where infinities took the only normal codes: such numbers saturate."""
    fmt = float_format("E1M2", 1, 2, specials="ieee")
    assert fmt.max == 1.5
    x = torch.tensor([1.51, 1.7, 1.999, 2.0, 1e30, math.inf])
    with path(way):
        for sign in (1, -1):
            q = round_to_grid(x * sign, fmt, Rule(rounding), key=1)
            assert q.tolist() == [1.5 * sign] * 6


@pytest.mark.parametrize("way", PATHS)
def test_two_levels_beyond_float32(way):
    """Of formats whose products float32 cannot hold, and of such as it can: by powers of two, one.

    A format's values times a power of two change no block; only what holds the products does.
    """
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    own, tiny, huge = (float_format(f"E5M3B{b}", 5, 3, bias=b) for b in (15, 100, -70))
    assert huge.max < torch.finfo(torch.float32).max < huge.max**2
    pairs = {(huge, huge): True, (tiny, tiny): True, (huge, tiny): False, (tiny, huge): False}
    with path(way):
        for (element, scale), is_wide in pairs.items():
            fmt = BlockFormat("MINE", element, 16, "two-level", scale)
            given = x.double() if is_wide else x
            wanted = fake_blocks(given, BlockFormat("MINE", own, 16, "two-level", own))
            assert_same(fake_blocks(x, fmt), wanted.float())
            found = round_blocks(x, fmt)
            assert found.values.dtype == found.scale.dtype == given.dtype
            assert_same((found.values * found.scale).float(), wanted.float())


@pytest.mark.parametrize("way", PATHS)
def test_no_block_is_longer_than_the_axis(way):
    x = torch.randn(3, 5)
    for block in (5, 6, 2**31, 2**62, 2**63, 2**64, 2**100):
        with path(way):
            wanted = round_blocks(x, BlockFormat("MINE", E4M3, 5)).values
            assert torch.equal(round_blocks(x, BlockFormat("MINE", E4M3, block)).values, wanted)
            wanted = altcore.quantize(x, E4M3, "block", block=5)
            for got, one in zip(
                altcore.quantize(x, E4M3, "block", block=block), wanted, strict=True
            ):
                assert torch.equal(got, one)
    for block in (0, -1, 1.5, "16", None):
        with pytest.raises(BadInput, match="a block holds at least 1 element"):
            BlockFormat("MINE", E4M3, block)


@pytest.mark.parametrize("way", PATHS)
@pytest.mark.parametrize(
    ("counts", "errors"),
    [
        (torch.zeros(3, dtype=torch.int64), None),
        (torch.zeros((), dtype=torch.int64), None),
        (torch.zeros(5, dtype=torch.int64), None),
        (torch.zeros(3, 4, dtype=torch.int64), None),
        (torch.zeros(4), None),
        (torch.zeros(4, dtype=torch.int64, device="meta"), None),
        (None, torch.zeros((), dtype=torch.float64)),
        (None, torch.zeros(1, dtype=torch.float64)),
        (None, torch.zeros(2)),
        (None, torch.zeros(1, 2, dtype=torch.float64)),
    ],
)
def test_sums_have_a_number_for_each(way, counts, errors):
    """Neither written past their end nor added to by broadcasting."""
    x, sums = torch.randn(2, 32), {"meters": Meters(counts, errors)}
    with path(way):
        for make in (
            lambda: round_to_grid(x, E4M3, **sums),
            lambda: fake_round(x, E4M3, r=None, s=None, **sums),
            lambda: round_scaled(x, E4M3, fake=True, **sums),
            lambda: round_blocks(x, get_format("MXFP4"), **sums),
            lambda: fake_blocks(x, get_format("NVFP4"), **sums),
        ):
            with pytest.raises(BadInput, match=r"^(counts: 4|errors: 2) numbers are needed"):
                make()


@pytest.mark.parametrize("way", PATHS)
def test_keys_are_whole_numbers_on_both_paths(way):
    """Of numpy, too; and what is no key is refused where no bits are drawn, too."""
    x, fmt = torch.randn(50), get_format("MXFP4")
    with path(way):
        for key in (7, -1, 2**70, np.int64(7), np.uint8(7), torch.tensor(7)):
            wanted = round_to_grid(x, E4M3, Rule("stochastic"), key=int(key))
            assert torch.equal(round_to_grid(x, E4M3, Rule("stochastic"), key=key), wanted)
        for key in (1.5, True, "a", torch.tensor(1.0), torch.ones(2).long(), np.float32(1)):
            for rounding in ("stochastic", "nearest-even"):
                for make in (
                    lambda k, r: round_to_grid(x, E4M3, Rule(r), key=k),
                    lambda k, r: round_scaled(x, E4M3, Rule(r), key=k, fake=True),
                    lambda k, r: round_blocks(x, fmt, Rule(r), key=k),
                ):
                    with pytest.raises(BadInput, match=r"^key: an int"):
                        make(key, rounding)


@needs_vmap
@available
def test_transforms_of_torch_func_get_no_kernel():
    """A scale or a key may stand for many, when what is rounded does not."""
    x = torch.randn(5)
    scales, keys = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([1, 2, 3])

    def rounded(s, key):
        q = round_to_grid(x, E4M3, Rule("stochastic"), r=1 / s, key=key)
        return q, fake_round(x, E4M3, r=1 / s, s=s)

    found = torch.func.vmap(rounded)(scales, keys)
    wanted = [rounded(s, k) for s, k in zip(scales, keys, strict=True)]
    for got, each in zip(found, zip(*wanted, strict=True), strict=True):
        assert_same(got, torch.stack(each))


@needs_vmap
@pytest.mark.parametrize("way", PATHS)
@pytest.mark.parametrize("fmt", [E4M3, FORMATS[-2]], ids=str)
def test_vmap_over_a_scale_and_a_key(way, fmt):
    """Each of them, with or without the tensor: as one call after another."""
    xs = numbers((3, 40)).clamp(-1e3, 1e3).nan_to_num()
    scales, keys = torch.tensor([0.3, 1.0, 2.7]), torch.tensor([1, 2, 3])

    def rounded(x, s, key):
        drawn = altcore.fake_quantize(x, fmt, s, "stochastic", key=key)
        return torch.stack([drawn, altcore.fake_quantize(x, fmt, s)])

    with path(way):
        for x, axis in ((xs, 0), (xs[0], None)):
            found = torch.func.vmap(rounded, in_dims=(axis, 0, 0))(x, scales, keys)
            each = zip(xs if axis == 0 else [x] * 3, scales, keys, strict=True)
            assert_same(found, torch.stack([rounded(*given) for given in each]))


@available
def test_memory_that_was_given_back():
    """As shards are, when what was gathered of them is freed: torch itself would read address 0."""
    x = torch.randn(4)
    x.untyped_storage().resize_(0)
    with pytest.raises(BadInput, match=r"^x: its storage was given back"):
        altcore.fake_quantize(x, E4M3)
