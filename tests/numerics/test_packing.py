"""Packed tensors: the bytes are those of other implementations, and nothing is lost on the way."""

from __future__ import annotations

import math

import gfloat
import ml_dtypes
import numpy as np
import pytest
import torch
from gfloat.formats import (
    format_info_mxfp4_e2m1,
    format_info_mxfp6_e2m3,
    format_info_mxfp6_e3m2,
    format_info_mxfp8_e4m3,
    format_info_mxfp8_e5m2,
    format_info_ocp_e5m2,
    format_info_p3109,
)
from hypothesis import example, given
from hypothesis import strategies as st

from altcore import BadInput, decode, fake_quantize, float_format, get_format, table_format
from altcore.formats import BlockFormat
from altcore.numerics import Rule, round_blocks
from altcore.numerics.packing import pack, pack_bits, unpack, unpack_bits

ML_DTYPES = {
    "E4M3": ml_dtypes.float8_e4m3fn,
    "E5M2": ml_dtypes.float8_e5m2,
    "E2M1": ml_dtypes.float4_e2m1fn,
    "E2M3": ml_dtypes.float6_e2m3fn,
    "E3M2": ml_dtypes.float6_e3m2fn,
}
GFLOAT = {
    "MXFP8-E4M3": format_info_mxfp8_e4m3,
    "MXFP8-E5M2": format_info_mxfp8_e5m2,
    "MXFP6-E2M3": format_info_mxfp6_e2m3,
    "MXFP6-E3M2": format_info_mxfp6_e3m2,
    "MXFP4": format_info_mxfp4_e2m1,
}
MX = [*GFLOAT, "MXINT8"]
BLOCKS = [*MX, "MXFP4-rceil", "MXFP8-E4M3-ceil", "MXFP6-E3M2-even", "NVFP4", "NVFP4-square"]


def spread(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal numbers, negative zeros among them, whose rows lie in very different binades."""
    g = torch.Generator().manual_seed(seed)
    power = torch.randint(-20, 20, (*shape[:-1], 1), generator=g).float().exp2()
    x = torch.randn(*shape, generator=g) * power
    return torch.where(torch.rand(*shape, generator=g) < 0.05, -0.0, x)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """The same numbers of the same dtype and shape, NaN and the sign of zero included."""
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and bool(torch.equal(a.nan_to_num(0.5), b.nan_to_num(0.5)))
        and bool(torch.equal(a.isnan(), b.isnan()))
        and bool(torch.equal(a.signbit() & ~a.isnan(), b.signbit() & ~b.isnan()))
    )


def stream(codes: np.ndarray, width: int) -> list[int]:
    """The bytes of a stream of codes, by numpy's own bit order."""
    bits = np.unpackbits(codes.astype(np.uint8)[:, None], axis=1, bitorder="little")
    return np.packbits(bits[:, :width].flatten(), bitorder="little").tolist()


# ------------------------------------------------------------------------------- bit streams


@pytest.mark.parametrize(
    ("width", "codes", "octets"),
    [
        (8, [0x12, 0xFE], [0x12, 0xFE]),
        (4, [0x1, 0x2, 0xF], [0x21, 0x0F]),
        # 000001 000010 000011 111100, each from its low bit: four codes in three bytes.
        (6, [0b000001, 0b000010, 0b000011, 0b111100], [0b10000001, 0b00110000, 0b11110000]),
        (6, [0b111111], [0b00111111]),
        (6, [0b111111, 0b100001], [0b01111111, 0b00001000]),
        (1, [1, 0, 1, 1], [0b1101]),
        (3, [0b101, 0b011, 0b110], [0b10011101, 0b1]),
        (5, [0b10001], [0b10001]),
        (4, [], []),
    ],
)
def test_bytes_by_hand(width, codes, octets):
    """Low bits first, the first code lowest, the last byte filled up with zeros."""
    packed = pack_bits(torch.tensor(codes, dtype=torch.uint8), width)
    assert packed.dtype == torch.uint8
    assert packed.tolist() == octets
    assert unpack_bits(packed, width, len(codes)).tolist() == codes


@given(st.integers(1, 8), st.data())
def test_any_codes_of_any_width(width, data):
    """The stream is numpy's, as short as can be, and gives the codes back."""
    given_codes = data.draw(st.lists(st.integers(0, 2**width - 1), max_size=70))
    codes = torch.tensor(given_codes, dtype=torch.int64)
    packed = pack_bits(codes, width)
    assert packed.tolist() == stream(np.array(given_codes, dtype=np.uint8), width)
    assert unpack_bits(packed, width, len(given_codes)).tolist() == given_codes


def test_a_stream_of_another_length_is_refused():
    """A code that is missing would otherwise be read as zero."""
    with pytest.raises(BadInput, match="5 codes of 6 bits are 4 bytes, not 3"):
        unpack_bits(torch.zeros(3, dtype=torch.uint8), 6, 5)


# --------------------------------------------------------------------- formats of single numbers


@pytest.mark.parametrize("name", ML_DTYPES)
def test_bytes_are_those_of_ml_dtypes(name):
    """Every number's bits in ml_dtypes, in a row without gaps."""
    fmt, dtype = get_format(name), np.dtype(ML_DTYPES[name])
    x = torch.cat([torch.randn(999) * fmt.max / 4, torch.tensor(fmt.values), -torch.zeros(1)])
    x = x.clamp(-fmt.max, fmt.max)
    wanted = stream(x.numpy().astype(dtype).view(np.uint8), fmt.bits)
    assert pack(x, name).codes.tolist() == wanted


@pytest.mark.parametrize(
    ("name", "info"), [("E5M2", format_info_ocp_e5m2), ("binary8p3se", format_info_p3109(8, 3))]
)
def test_special_codes_are_those_of_gfloat(name, info):
    """NaN and infinities have codes where the format has them."""
    x = torch.tensor([1.0, -2.0, math.inf, -math.inf, math.nan, 0.0])
    wanted = [gfloat.encode_float(info, v) for v in x.tolist()]
    packed = pack(x, name, overflow="inf")
    assert [c for c, v in zip(packed.codes.tolist(), x, strict=True) if v == v] == [
        c for c, v in zip(wanted, x, strict=True) if v == v
    ]
    assert same(unpack(packed), x)


@pytest.mark.parametrize("name", ["E4M3", "E2M1", "E3M2", "E1M1", "TERNARY", "posit6_1", "BINARY"])
@pytest.mark.parametrize("rounding", ["nearest-even", "to-zero", "stochastic"])
@pytest.mark.parametrize("scale", [None, 0.37, torch.tensor([3.0])])
def test_packing_is_quantizing(name, rounding, scale):
    """What comes out is what `fake_quantize` gives; of bfloat16, before it rounds to bfloat16.

    A zero keeps its sign where the format has two.
    """
    x = torch.randn(3, 5, 7)
    key = 5 if rounding == "stochastic" else None
    packed = pack(x, name, scale, rounding=rounding, key=key)
    wanted = fake_quantize(x, name, scale, rounding, key=key)
    assert torch.equal(unpack(packed), wanted)
    if any(v == 0 and math.copysign(1, v) < 0 for v in get_format(name).code_values):
        assert same(unpack(packed), wanted)
    half = x.bfloat16()
    out = unpack(pack(half, name, scale, rounding=rounding, key=key))
    assert torch.equal(out, fake_quantize(half.float(), name, scale, rounding, key=key))


@given(
    st.sampled_from(["E4M3", "E5M2", "E2M1", "E2M3", "E3M2", "INT4", "E0M4"]),
    st.lists(st.floats(width=32, allow_nan=False), max_size=40),
    st.one_of(st.none(), st.floats(1e-6, 1e6)),
)
@example("E2M3", [-0.0, 0.0625, 7.75, math.inf, -math.inf], None)
def test_packing_is_quantizing_of_any_numbers(name, numbers, scale):
    """Infinities saturate in both."""
    x = torch.tensor(numbers, dtype=torch.float32)
    packed = pack(x, name, scale)
    assert packed.codes.numel() == math.ceil(len(numbers) * get_format(name).bits / 8)
    assert torch.equal(unpack(packed), fake_quantize(x, name, scale))


def test_what_is_packed_says_what_it_is():
    """Format, shape and scale lie beside the codes; bytes are counted."""
    x = torch.randn(3, 5)
    packed = pack(x, "E2M1", 0.5)
    assert (packed.format, packed.shape, packed.axis) == (get_format("E2M1"), (3, 5), None)
    assert packed.scales is None
    assert packed.scale.dtype == torch.float32
    assert packed.scale.ndim == 0
    assert (packed.codes.numel(), packed.nbytes) == (8, 12)
    assert pack(x, "E4M3").nbytes == 15
    assert pack(x.reshape(5, 3).t(), "E4M3").codes.tolist() == [
        *pack(x.reshape(5, 3).t().contiguous(), "E4M3").codes.tolist()
    ]


def test_formats_beyond_float32():
    """They come back in float64, their scale too."""
    fmt = float_format("WIDE", 6, 1, bias=-200)
    x = torch.tensor([1.0, 2.0**130], dtype=torch.float64)
    packed = pack(x, fmt, 2.0**-210)
    assert packed.scale.dtype == torch.float64
    assert same(unpack(packed), fake_quantize(x, fmt, 2.0**-210))


# ------------------------------------------------------------------------------- block formats


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("rounding", ["nearest-even", "stochastic"])
def test_blocks_come_back(name, axis, rounding):
    """Values times scales are those of `round_blocks`, signs of zeros included."""
    x = spread(32, 64, 96)
    x[3], x[5, :, 7] = 0, 1e-42
    key = 5 if rounding == "stochastic" else None
    fmt = get_format(name)
    found = round_blocks(x, fmt, Rule(rounding), axis=axis, key=key)
    wanted = found.values if found.scale is None else found.values * found.scale
    packed = pack(x, fmt, axis=axis, rounding=rounding, key=key)
    assert same(unpack(packed), wanted)
    assert packed.axis == (None if fmt.is_square else axis % 3)
    assert packed.nbytes == x.numel() * fmt.bits / 8 + (0 if found.scale is None else 4)


@given(
    st.sampled_from(BLOCKS),
    st.integers(0, 3),
    st.integers(0, 2),
    st.lists(st.floats(width=32), min_size=1, max_size=40),
)
@example("MXFP4", 1, 1, [math.nan, math.inf, 1.0, 3e38, 1e-45])
@example("NVFP4", 2, 1, [math.inf, 1.0])
def test_blocks_of_any_numbers_come_back(name, rows, columns, numbers):
    """The largest and the smallest, NaN and infinities: what was NaN stays NaN, and no more."""
    fmt = get_format(name)
    shape = (rows * 16, columns * fmt.block)
    size = shape[0] * shape[1]
    x = torch.tensor((numbers * size)[:size], dtype=torch.float32).reshape(shape)
    found = round_blocks(x, fmt)
    wanted = found.values if found.scale is None else found.values * found.scale
    assert same(unpack(pack(x, fmt)), wanted)


@pytest.mark.parametrize("name", GFLOAT)
def test_blocks_are_those_of_gfloat(name):
    """Scale code and element codes of every block, the largest and smallest scales among them."""
    x, info = spread(64, 32), GFLOAT[name]
    x[0], x[1] = x[0] * 2.0**120, x[1] * 2.0**-120
    packed = pack(x, name)
    elements = unpack_bits(packed.codes, get_format(name).element.bits, x.numel()).reshape(64, 32)
    for row, scale, codes in zip(
        x.double().numpy(), packed.scales.tolist(), elements.tolist(), strict=True
    ):
        wanted = gfloat.compute_scale_amax(info.etype.emax, row)
        theirs = gfloat.encode_block(info, wanted, row / wanted)
        assert [scale, *codes] == [int(code) for code in theirs]


def test_codes_of_mx_by_hand():
    """Two blocks of MXFP4: scales in E8M0, two elements a byte; MXINT8 is sign and magnitude."""
    x = torch.zeros(2, 32)
    x[0, :4] = torch.tensor([4.0, -6.0, 0.5, 1.0])
    x[1, 31] = -0.75  # 2^-1 is its binade, of which E2M1's largest takes 2^2: the scale is 2^-3
    packed = pack(x, "MXFP4")
    assert packed.scales.tolist() == [127, 127 - 3]
    assert packed.codes[:2].tolist() == [0xF6, 0x21]
    assert packed.codes[-1] == 0xF0
    one = torch.zeros(32)
    one[:3] = torch.tensor([-1.984375, 0.015625, 1.0])
    packed = pack(one, "MXINT8")
    assert packed.scales.tolist() == [127]
    assert packed.codes[:3].tolist() == [0xFF, 0x01, 0x40]


def test_nan_and_zero_blocks_by_hand():
    """NaN is scale code 255, zeros have code 0; the other blocks are left alone."""
    x = torch.ones(4, 32)
    x[0, 1], x[1, 2], x[2] = math.nan, math.inf, 0
    packed = pack(x, "MXFP8-E4M3")
    assert packed.scales.tolist() == [255, 255, 0, 127 - 8]
    assert packed.codes[:96].eq(0).all()
    out = unpack(packed)
    assert out[:2].isnan().all()
    assert (out[2] == 0).all()
    assert (out[3] == 1).all()


def test_nvfp4_by_hand():
    """The block scale is a code of E4M3, the tensor's is float32; a code has the sign of zero."""
    x = torch.zeros(1, 32)
    x[0, 0], x[0, 1], x[0, 16] = 448 * 6.0, -0.0, 6.0
    packed = pack(x, "NVFP4")
    assert packed.scale == 1
    assert packed.scales.tolist() == [0x7E, 0x38]  # 448 and 1
    assert packed.codes[0] == 0x87  # 6, and -0 above it
    assert packed.codes[8] == 0x07


def test_the_order_is_the_tensor_s_with_the_axis_last():
    """Packing along an axis is packing the tensor with that axis moved last."""
    x = spread(64, 3, 32)
    a, b = pack(x, "MXFP6-E2M3", axis=0), pack(x.movedim(0, -1).contiguous(), "MXFP6-E2M3")
    assert torch.equal(a.codes, b.codes)
    assert torch.equal(a.scales, b.scales)
    assert torch.equal(unpack(a), unpack(b).movedim(-1, 0))


def test_square_blocks_are_in_the_tensor_s_order():
    """Codes as the elements lie, scales as the blocks do."""
    x = spread(2, 32, 48)
    packed = pack(x, "NVFP4-square")
    found = round_blocks(x, get_format("NVFP4-square"))
    assert packed.scales.numel() == 2 * 2 * 3
    scales = decode(packed.scales, "E4M3").reshape(2, 2, 1, 3, 1).expand(-1, -1, 16, -1, 16)
    codes = unpack_bits(packed.codes, 4, x.numel())
    elements = decode(codes, "E2M1").reshape(2, 2, 16, 3, 16)
    assert torch.equal((elements * scales).reshape(x.shape), found.values)


@pytest.mark.parametrize(
    ("fmt", "more", "said"),
    [
        ("MXFP4", {}, r"MXFP4: axis -1 .* length 40, which blocks of 32"),
        ("NVFP4-square", {}, r"NVFP4-square: axis -1 .* length 40, which blocks of 16"),
        ("MXFP4", {"axis": 2}, "axis: .* has no axis 2"),
        ("MXFP4", {"scale": 1.0}, "MXFP4: its blocks have scales of their own"),
        ("MXFP4", {"overflow": "nan"}, "MXFP4 saturates within its blocks"),
        ("BF16", {}, "BF16: a code has 16 bits"),
        ("MXFP5", {}, "MXFP5"),
        ("E4M3", {"scale": torch.ones(2)}, r"one scale, not \[2\]"),
        ("E4M3", {"scale": "amax"}, "a number or a tensor"),
        ("E4M3", {"scale": True}, "a number or a tensor"),
        ("E4M3", {"scale": -1.0}, "positive"),
        ("E4M3", {"scale": 1e39}, "positive"),
        ("E4M3", {"rounding": "nearst"}, "unknown rounding"),
        ("MXFP4", {"axis": 0, "rounding": "nearst"}, "unknown rounding"),
    ],
)
def test_what_cannot_be_packed(fmt, more, said):
    """The message names the format and what is wrong."""
    with pytest.raises(BadInput, match=said):
        pack(torch.ones(32, 40), fmt, **more)


def test_elements_and_rules_that_have_no_codes():
    """Elements of 16 bits, a rule of scales that are no codes, NaN, and whole numbers."""
    wide = BlockFormat("MINE", get_format("FP16"))
    with pytest.raises(BadInput, match="MINE: a code has 16 bits"):
        pack(torch.ones(32), wide)
    other = BlockFormat("OTHER", get_format("E2M1"), rule="amax")
    with pytest.raises(BadInput, match=r"OTHER: scales by the rule amax have no codes"):
        pack(torch.ones(32), other)
    with pytest.raises(BadInput, match="no NaN code"):
        pack(torch.tensor([math.nan]), "E2M1")
    for name in ("E4M3", "MXFP4"):
        with pytest.raises(BadInput, match="int64"):
            pack(torch.arange(32), name)
    with pytest.raises(BadInput, match=r"axis: .* has no axis -1"):
        pack(torch.tensor(1.0), "MXFP4")


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (0, 32), (2, 0, 32)])
def test_empty_and_single(shape):
    """No element is no byte; a tensor without dimensions keeps having none."""
    x = torch.ones(shape)
    packed = pack(x, "E2M1")
    assert packed.codes.numel() == math.ceil(x.numel() / 2)
    assert same(unpack(packed), x)
    if shape:
        assert same(unpack(pack(x, "MXFP4")), x)
        assert same(unpack(pack(x, "NVFP4")), x)
    if len(shape) > 1 and not any(n % 16 for n in shape[-2:]):
        assert same(unpack(pack(x, "NVFP4-square")), x)


def test_float64_is_rounded_once():
    """The codes are those of float64; what comes back is float32."""
    x = torch.full((1, 32), 1.0 + 2.0**-4, dtype=torch.float64)
    x[0, 1] += 2.0**-40  # past a tie that float32 would see
    for name in ("E4M3", "MXFP8-E4M3"):
        out = unpack(pack(x, name))
        assert out.dtype == torch.float32
        assert out[0, :3].tolist() == [1.0, 1.125, 1.0]


def test_elements_from_a_table():
    """A block format of one's own: five values take three bits each."""
    fmt = BlockFormat("MINE", table_format("FIVE", [-1, -0.3, 0, 0.3, 1]), 8)
    x = spread(5, 16)
    packed = pack(x, fmt)
    assert packed.nbytes == 5 * 2 * (3 + 1)
    assert same(unpack(packed) + 0.0, round_blocks(x, fmt).values + 0.0)


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["E4M3", "E3M2", *BLOCKS])
def test_the_bytes_are_the_same_on_a_gpu(name):
    """And so is what comes back."""
    x = spread(64, 96)
    here, there = pack(x, name), pack(x.cuda(), name)
    assert there.codes.is_cuda
    assert torch.equal(here.codes, there.codes.cpu())
    assert here.scales is None or torch.equal(here.scales, there.scales.cpu())
    assert same(unpack(here), unpack(there).cpu())
