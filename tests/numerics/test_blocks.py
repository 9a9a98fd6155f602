"""Block formats: scales by their rules, elements under them, and what cannot be."""

from __future__ import annotations

import math

import gfloat
import numpy as np
import pytest
import torch
from gfloat.formats import (
    format_info_mxfp4_e2m1,
    format_info_mxfp6_e2m3,
    format_info_mxfp6_e3m2,
    format_info_mxfp8_e4m3,
    format_info_mxfp8_e5m2,
)

from altcore import BadInput, fake_quantize, float_format, get_format, quantize, table_format
from altcore.formats import BlockFormat
from altcore.numerics import (
    COUNTS,
    Meters,
    Rule,
    amax,
    fake_blocks,
    round_blocks,
    round_to_grid,
    scale_of,
)
from altcore.numerics import spread as spread_blocks

MX = {
    "E4M3": format_info_mxfp8_e4m3,
    "E5M2": format_info_mxfp8_e5m2,
    "E2M3": format_info_mxfp6_e2m3,
    "E3M2": format_info_mxfp6_e3m2,
    "E2M1": format_info_mxfp4_e2m1,
}


def mx(element: str = "E4M3", rule: str = "floor", **more) -> BlockFormat:
    return BlockFormat(f"MX-{element}", get_format(element), rule=rule, **more)


def nvfp4(**more) -> BlockFormat:
    return BlockFormat("NVFP4", get_format("E2M1"), 16, "two-level", get_format("E4M3"), **more)


def test_scales_are_positive():
    """The largest is that of a scale format, whatever its negative values are."""
    scales = [get_format("E4M3"), table_format("S", [-1, 0, 1, 448])]
    made = [BlockFormat("B", get_format("E2M1"), 16, "two-level", f) for f in scales]
    assert [f.largest for f in made] == [448 * 6] * 2


def spread(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Values whose blocks lie in very different binades."""
    g = torch.Generator().manual_seed(seed)
    scale = torch.randint(-30, 30, (rows, 1), generator=g).float().exp2()
    return torch.randn(rows, columns, generator=g) * scale


@pytest.mark.parametrize("element", MX)
def test_the_ocp_rule_agrees_with_gfloat(element):
    """Every element of every block is gfloat's, bit for bit."""
    x = spread(64, 32)
    ours = round_blocks(x, mx(element)).values
    info = MX[element]
    for row, mine in zip(x.double().numpy(), ours.double().numpy(), strict=True):
        scale = gfloat.compute_scale_amax(info.etype.emax, row)
        theirs = gfloat.quantize_block(info, row, lambda *_, scale=scale: scale)
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(("rule", "code"), [("floor", 126), ("ceil", 127), ("rceil", 126)])
def test_amax_150_in_e4m3(rule, code):
    """The three rules of a power of two differ where the specification's users say they do."""
    x = torch.zeros(32)
    x[3] = 150.0
    scales = round_blocks(x, mx("E4M3", rule)).scales
    assert scales.tolist() == [2.0 ** (code - 127)]


@pytest.mark.parametrize("element", MX)
def test_each_rule_by_exact_comparison(element):
    """floor, ceil, rceil and even against logarithms taken exactly, one block at a time."""
    fmt = get_format(element)
    top = math.frexp(fmt.max)[1] - 1
    amaxes = [*spread(200, 1, seed=3).abs().flatten().tolist(), 1.0, fmt.max, 1.75, 1.9999999]
    for value in amaxes:
        a = float(np.float32(value))
        floor = math.frexp(a)[1] - 1
        ceil = floor + (a != 2.0**floor)
        rceil = next(k for k in range(-200, 200) if a <= fmt.max * 2.0**k)
        mantissa = round(a / 2.0**floor * 2 ** (fmt.precision - 1))  # Python rounds to even
        even = floor + (mantissa == 2**fmt.precision)
        expected = {"floor": floor - top, "ceil": ceil - top, "rceil": rceil, "even": even - top}
        for rule, k in expected.items():
            scales = round_blocks(torch.tensor([a]), mx(element, rule)).scales
            assert scales.item() == 2.0**k, (rule, a)


def test_rules_that_hold_amax_clip_nothing():
    """Under ceil and rceil no element passes the largest value; under floor some of E2M1's do."""
    x = torch.randn(1000, 32, generator=torch.Generator().manual_seed(1))
    overflow = {}
    for rule in ("floor", "ceil", "rceil"):
        counts = torch.zeros(len(COUNTS), dtype=torch.int64)
        round_blocks(x, mx("E2M1", rule), meters=Meters(counts))
        overflow[rule] = counts[COUNTS.index("overflow")].item()
        assert counts[0] == x.numel()
    assert overflow["ceil"] == overflow["rceil"] == 0
    assert overflow["floor"] > 0


def test_zero_and_nonfinite_blocks():
    """Zeros have the smallest scale and stay zeros; a NaN or an infinity spoils its block only."""
    x = torch.ones(4, 32)
    x[0] = 0
    x[1, 5], x[2, 7] = math.nan, math.inf
    found = round_blocks(x, mx())
    assert found.scales[0] == 2.0**-127
    assert (found.values[0] == 0).all()
    assert found.values[1:3].isnan().all()
    assert found.scales[1:3].isnan().all()
    assert (found.values[3] == 1).all()


def test_mxint8_is_symmetric():
    """The element of MXINT8 is m/64 with m from -127 to 127."""
    element = float_format("INT8-of-MX", 0, 7, bias=0)
    fmt = BlockFormat("MXINT8", element)
    x = torch.linspace(-1.999, 1.999, 32)
    values = round_blocks(x, fmt).values
    assert values.min() == -127 / 64
    assert values.max() == 127 / 64
    assert torch.equal(values, (x * 64).round().clamp(-127, 127) / 64)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_blocks_lie_along_the_axis_and_ends_are_padded(axis):
    """A length that the block does not divide is padded with zeros, which are not counted."""
    x = spread(37, 41)
    counts = torch.zeros(len(COUNTS), dtype=torch.int64)
    found = round_blocks(x, mx(), axis=axis, meters=Meters(counts)).values
    assert counts[0] == x.numel()
    lines = x.movedim(axis, -1)
    for line, got in zip(lines, found.movedim(axis, -1), strict=True):
        for start in range(0, len(line), 32):
            own = round_blocks(line[start : start + 32].clone(), mx()).values
            assert torch.equal(got[start : start + 32], own)


def test_square_blocks_are_their_transpose_s():
    """A square block has one scale, so that a matrix and its transpose are quantized alike."""
    x = spread(50, 35)
    fmt = mx(is_square=True)
    assert torch.equal(round_blocks(x, fmt).values, round_blocks(x.t(), fmt).values.t())
    assert not torch.equal(round_blocks(x, mx()).values, round_blocks(x.t(), mx()).values.t())


def test_nvfp4_against_its_definition():
    """Block scales are E4M3 of amax/6 over the tensor's scale; elements are E2M1 under both."""
    x = spread(8, 48)[:, :40] * 2.0**-3
    found = round_blocks(x, nvfp4())
    g = (x.abs().max() / (448 * 6)).item()
    assert found.scale.item() == pytest.approx(g, rel=1e-7)
    elements, scales = np.array(get_format("E2M1").values), np.array(get_format("E4M3").values)
    padded = torch.nn.functional.pad(x, (0, 8)).reshape(-1, 16)
    for block, scale in zip(padded.double().numpy(), found.scales.tolist(), strict=True):
        wanted = np.abs(block).max() / 6 / found.scale.item()
        assert scale in scales
        assert abs(scale - wanted) <= np.abs(scales - wanted).min() * (1 + 1e-6)
    whole = torch.nn.functional.pad(found.values, (0, 8)).reshape(-1, 16).double().numpy()
    for block, got, scale in zip(
        padded.double().numpy(), whole, found.scales.tolist(), strict=True
    ):
        if scale == 0:
            assert (got == 0).all()
            continue
        error = np.abs(block / (scale * found.scale.item()) - got / scale)
        best = np.abs(block[:, None] / (scale * found.scale.item()) - elements).min(1)
        assert (error <= best + 1e-5).all()


def test_nvfp4_of_zeros_is_zeros():
    """No scale can be made of a tensor of zeros, and none is needed."""
    found = round_blocks(torch.zeros(3, 16), nvfp4())
    assert (found.values * found.scale == 0).all()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"block": 0}, "at least 1 element"),
        ({"rule": "round"}, "floor, ceil"),
        ({"rule": "two-level"}, "scale_format"),
        ({"scale_format": float_format("E4M3", 4, 3)}, "scale_format"),
    ],
)
def test_block_formats_that_cannot_be(more, said):
    """The message names the format and what would be right."""
    with pytest.raises(BadInput, match=rf"format MINE.*{said}"):
        BlockFormat("MINE", get_format("E4M3"), **more)


def test_integers_are_refused():
    """There is nothing to round in a tensor of whole numbers."""
    with pytest.raises(BadInput, match="int64"):
        round_blocks(torch.arange(32), mx())


@pytest.mark.parametrize("rule", ["amax", "power-of-two"])
def test_scales_in_float32_are_those_of_a_tensor(rule):
    """A block is rounded as a tensor of its own is, and a block of zeros has scale 1."""
    x = spread(6, 32)
    x[2] = 0
    fmt = mx("E4M3", rule)
    found = round_blocks(x, fmt)
    for row, values, s, r in zip(x, found.values, found.scales, found.inverse, strict=True):
        wanted = scale_of(amax(row), fmt.element, power_of_two=rule == "power-of-two")
        assert (s, r) == wanted
        assert torch.equal(values, round_to_grid(row, fmt.element, r=r) * s)
    assert found.scales[2] == 1
    assert fmt.bits == 8 + (32 if rule == "amax" else 8) / 32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_there_and_back_rounds_once(dtype):
    """The product of element and scales, exact in float64 here, is rounded to the input's dtype."""
    x = (torch.randn(9, 50, generator=torch.Generator().manual_seed(2)) * 3).to(dtype)
    for fmt in (mx("E4M3", "amax"), mx("E2M1", "even"), nvfp4()):
        found, back = round_blocks(x, fmt), fake_blocks(x, fmt)
        assert back.dtype == dtype
        s = spread_blocks(found.scales, tuple(x.shape), fmt)
        r = spread_blocks(found.inverse, tuple(x.shape), fmt)
        q = round_to_grid(x, fmt.element, r=r)
        exact = q.double() * s.double() * (1 if found.scale is None else found.scale.double())
        wanted = exact if dtype == torch.float64 else torch.from_numpy(exact.numpy()).to(dtype)
        assert torch.equal(back, wanted)


def test_random_bits_are_those_of_the_index():
    """The same element is rounded alike, whatever the axis of the blocks."""
    x = torch.rand(40, 33) + 1  # one binade: one scale
    x[:, ::5] = 1.9
    x[::5] = 1.9
    fmt = mx("E2M1", "floor", block=8)
    kinds = {"rule": Rule("stochastic"), "key": 4}
    along, across = (fake_blocks(x, fmt, axis=axis, **kinds) for axis in (0, 1))
    r = round_blocks(x, fmt).inverse[0]
    assert torch.equal(along, across)
    assert torch.equal(along, round_to_grid(x, fmt.element, r=r, **kinds) / r)


def test_float64_is_rounded_once():
    """What float32 would take for a tie, or for the next binade, is not one."""
    x = torch.tensor([1 - 2.0**-40, 0.53125 + 2.0**-40, 0.53125], dtype=torch.float64)
    found = round_blocks(x, mx("E4M3", "floor"))
    assert found.values.dtype == torch.float64
    assert found.scales.item() == 2.0**-9
    assert found.values[1:].tolist() == [0.5625, 0.5]
    below = torch.tensor([1.75 - 2.0**-40], dtype=torch.float64)  # of a tie in E2M1
    assert round_blocks(below, mx("E2M1", "even")).scales.item() == 2.0**-2
    assert round_blocks(below.float(), mx("E2M1", "even")).scales.item() == 2.0**-1


def test_errors_are_of_what_is_meant():
    """Noise and signal of the blocks are those of the tensor, if scales are powers of two."""
    x = spread(20, 50)
    errors = torch.zeros(2, dtype=torch.float64)
    values = round_blocks(x, mx(), meters=Meters(errors=errors)).values.double()
    wanted = [(values - x).square().sum().item(), x.double().square().sum().item()]
    assert errors.tolist() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(
    ("shape", "axis", "more"), [((), -1, {}), ((4,), 1, {}), ((4,), 0, {"is_square": True})]
)
def test_tensors_that_cannot_be_divided(shape, axis, more):
    """The message names the format and the axes."""
    with pytest.raises(BadInput, match=r"MX-E4M3.*ax[ei]s"):
        round_blocks(torch.ones(shape), mx(**more), axis=axis)
    assert round_blocks(torch.ones(3, 0), mx()).values.shape == (3, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "call",
    [
        lambda x: fake_quantize(x, "MXFP8-E4M3"),
        lambda x: fake_quantize(x, "MXFP4", axis=0),
        lambda x: fake_quantize(x, nvfp4(is_square=True)),
        lambda x: quantize(x, "E3M4", "block", block=7)[0],
    ],
    ids=["along", "across", "square", "scales"],
)
def test_compiled_by_torch(call):
    """All blocks, the last and shorter one, too, are those of torch's operations uncompiled."""
    x = torch.randn(20, 40, generator=torch.Generator().manual_seed(0))
    torch._dynamo.reset()
    assert torch.equal(torch.compile(call)(x), call(x))
