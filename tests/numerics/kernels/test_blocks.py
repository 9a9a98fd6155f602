"""Block formats in the compiled kernels: the torch path bit for bit, whatever the layout."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from format_checks import PATHS, assert_same, path, random_floats
from hypothesis import given, settings
from hypothesis import strategies as st

from altcore import get_format
from altcore.formats import BlockFormat, float_format, table_format
from altcore.formats.blocks import RULES
from altcore.numerics import (
    COUNTS,
    NEAREST,
    Meters,
    Rule,
    fake_blocks,
    fake_round,
    round_blocks,
    round_to_grid,
)
from altcore.numerics.backends import block_rounder_for
from altcore.numerics.kernels import build
from altcore.numerics.kernels.blocks import KernelBlockRounder

ELEMENTS = {
    "E4M3": get_format("E4M3"),
    "E5M2": get_format("E5M2"),
    "E2M1": get_format("E2M1"),
    "E7M0": float_format("E7M0", 7, 0),
    "INT8": float_format("INT8-of-MX", 0, 7, bias=0),
    "FP16": float_format("FP16", 5, 10, specials="ieee"),
    "NF": table_format("NF", [-1, -0.7, -0.5, -0.28, -0.09, 0, 0.08, 0.24, 0.44, 0.72, 1]),
    "binary": table_format("binary", [-1, 1]),
}
ROUNDINGS = ("nearest-even", "nearest-away", "stochastic", "down")
available = pytest.mark.skipif(build.library() is None, reason="no C compiler")


def block_format(element: str, rule: str, block: int = 32, **more) -> BlockFormat:
    scale = get_format("E4M3") if rule == "two-level" else None
    return BlockFormat("MINE", ELEMENTS[element], block, rule, scale, **more)


def awkward(*shape: int, seed: int = 0) -> torch.Tensor:
    """Blocks in very different binades, zeros, subnormals, infinities and NaN among them."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=g) * torch.randint(-20, 20, shape, generator=g).float().exp2()
    flat = x.flatten()
    wild = random_floats(flat.numel() // 2, seed)
    wild[~torch.isfinite(wild)] = 0
    for start, piece in zip(range(0, flat.numel(), 97), wild.split(41), strict=False):
        kept = piece[: flat.numel() - start]
        flat[start : start + len(kept)] = kept
    for i, value in enumerate((0.0, -0.0, 1e-42, 3e38, 2.0**-140, math.inf, math.nan)):
        at = (i * flat.numel()) // 7 + 3
        flat[at : at + (70 if i < 5 else 1)] = value
    return flat.view(shape)


def both(x, fmt, **more):
    """What each path gives: values, the way back, scales, counts."""
    found = []
    for way in PATHS:
        counts = [torch.zeros(len(COUNTS), dtype=torch.int64) for _ in range(2)]
        errors = [torch.zeros(2, dtype=torch.float64) for _ in range(2)]
        with path(way):
            plain = round_blocks(x, fmt, **more), fake_blocks(x, fmt, **more)
            blocks = round_blocks(x, fmt, meters=Meters(counts[0], errors[0]), **more)
            fake = fake_blocks(x, fmt, meters=Meters(counts[1], errors[1]), **more)
        assert_same(blocks.values, plain[0].values)
        assert_same(fake, plain[1])
        assert torch.equal(counts[0], counts[1])
        found.append((blocks, fake, counts[0], errors))
    return found


def assert_alike(x, fmt, **more) -> None:
    (torch_blocks, torch_fake, torch_counts, torch_errors), compiled = both(x, fmt, **more)
    blocks, fake, counts, errors = compiled
    assert_same(blocks.values, torch_blocks.values)
    assert_same(blocks.scales, torch_blocks.scales)
    assert_same(blocks.inverse, torch_blocks.inverse)
    assert (blocks.scale is None) == (torch_blocks.scale is None)
    if blocks.scale is not None:
        assert_same(blocks.scale, torch_blocks.scale)
    assert_same(fake, torch_fake)
    assert counts.tolist() == torch_counts.tolist()
    for got, wanted in zip(errors, torch_errors, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=0)


@available
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("element", ELEMENTS)
def test_same_bits_as_torch(element, rule):
    """Every dtype, rounding and direction, for lengths that no block divides."""
    x = awkward(67, 150)
    if rule == "two-level":  # one that is not finite spoils all
        x = torch.where(torch.isfinite(x) & (x.abs() < 1e9), x, 1e-3)
    fmt = block_format(element, rule)
    for dtype, rounding, axis in itertools.product(
        (torch.float32, torch.bfloat16), ROUNDINGS, (0, 1)
    ):
        assert_alike(x.to(dtype), fmt, axis=axis, rule=Rule(rounding), key=5)


@available
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("element", ["E4M3", "E5M2", "E2M1", "INT8", "FP16"])
def test_same_bits_of_ordinary_numbers(element, rule):
    """Where nothing is extreme, so that everything is measured in one pass."""
    x = torch.randn(9, 2048, generator=torch.Generator().manual_seed(3))
    x[2, 40:90] = 0
    x[3, ::5] = -0.0
    x[4] *= 1e-3
    x[:, ::100] *= 1e-7
    for dtype, block, axis in itertools.product(
        (torch.float32, torch.bfloat16), (16, 32, 64), (0, 1)
    ):
        assert_alike(x.to(dtype), block_format(element, rule, block), axis=axis)


@available
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("block", [1, 3, 16, 32, 100, 2000])
def test_same_bits_for_every_size_of_block(block, rule):
    """Blocks in rows, across rows and square; longer than what the kernels hold at a time, too."""
    x = awkward(3, 70, 1100, seed=1)
    if rule == "two-level":
        x = torch.where(torch.isfinite(x), x, 0.0)
    for axis, square in ((0, False), (1, False), (2, False), (2, True)):
        assert_alike(x, block_format("E2M1", rule, block, is_square=square), axis=axis)


@available
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_for_whole_tensors_that_are_not_finite(dtype):
    """Under two levels; and for tensors of zeros, and of numbers whose scale underflows."""
    for value in (math.nan, math.inf, 0.0, 1e-45, 1e-42, 3e-39, 1e-36, 3e38):
        x = torch.full((5, 40), value).to(dtype)
        x[1:3] *= 0.37
        for rule in RULES:
            assert_alike(x, block_format("E2M1", rule, 16))


@available
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_same_bits_for_any_shape(data):
    """Of any number of axes, for any block."""
    shape = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=4))
    square = len(shape) > 1 and data.draw(st.booleans())
    fmt = block_format(
        data.draw(st.sampled_from(list(ELEMENTS))),
        data.draw(st.sampled_from(RULES)),
        data.draw(st.integers(1, 70)),
        is_square=square,
    )
    x = random_floats(math.prod(shape), seed=data.draw(st.integers(0, 99))).reshape(shape)
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    scaled = (x * 2.0 ** data.draw(st.integers(-149, 30))).to(dtype)
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    rounding = data.draw(st.sampled_from(ROUNDINGS))
    assert_alike(scaled, fmt, axis=axis, rule=Rule(rounding), key=7)


@available
@pytest.mark.parametrize("axis", [0, 1])
def test_threads_do_not_matter(axis):
    """Results and counts are those of one thread."""
    before = torch.get_num_threads()
    x = awkward(301, 517)
    fmt = block_format("E4M3", "amax")
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            counts = torch.zeros(4, dtype=torch.int64)
            errors = torch.zeros(2, dtype=torch.float64)
            more = {"rule": Rule("stochastic"), "key": 2, "meters": Meters(counts, errors)}
            found = round_blocks(x, fmt, axis=axis, **more)
            results.append((found.values, found.scales, counts.tolist(), errors))
    finally:
        torch.set_num_threads(before)
    for values, scales, counts, errors in results[1:]:
        assert_same(values, results[0][0])
        assert_same(scales, results[0][1])
        assert counts == results[0][2]
        torch.testing.assert_close(errors, results[0][3], rtol=1e-12, atol=0)


@available
@pytest.mark.parametrize("element", ELEMENTS)
def test_errors_are_those_of_the_torch_path(element):
    """Of a tensor with one scale, under every overflow rule, in float64 sums or not."""
    fmt = ELEMENTS[element]
    rules = ["saturate", *(["inf"] if fmt.inf_codes else []), *(["nan"] if fmt.nan_codes else [])]
    for scale, rounding, overflow in itertools.product(
        (1.0, 3e-30, 1e25), ("nearest-even", "stochastic"), rules
    ):
        x = awkward(40, 301) * scale
        r, s = torch.tensor(0.37), torch.tensor(1 / 0.37)
        kinds = {"rule": Rule(rounding, overflow), "key": 3, "r": r}
        found = []
        for way in PATHS:
            errors = torch.zeros(2, dtype=torch.float64)
            with path(way):
                q = round_to_grid(x, fmt, meters=Meters(errors=errors), **kinds)
                y = fake_round(x.bfloat16(), fmt, s=s, meters=Meters(errors=errors), **kinds)
            found.append((q, y, errors))
        assert_same(found[0][0], found[1][0])
        assert_same(found[0][1], found[1][1])
        torch.testing.assert_close(found[1][2], found[0][2], rtol=1e-6, atol=0)


@available
def test_kernels_are_used():
    """For plain float32 and bfloat16; not with a scale format that has no magic number."""
    x = torch.randn(4, 32)
    for other in (x, x.bfloat16()):
        rounder = block_rounder_for(other, block_format("E4M3", "two-level"), NEAREST)
        assert isinstance(rounder, KernelBlockRounder)
    coarse = BlockFormat("MINE", ELEMENTS["E2M1"], 16, "two-level", ELEMENTS["E7M0"])
    assert not isinstance(block_rounder_for(x, coarse, NEAREST), KernelBlockRounder)
    assert_alike(x, coarse)
