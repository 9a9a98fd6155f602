"""The formats of altcore-formats, against ml_dtypes, gfloat, the standards and the reference."""

import math
import pickle
import subprocess
import sys
import tomllib
from pathlib import Path
from statistics import NormalDist

import gfloat
import ml_dtypes
import numpy as np
import pytest
import torch
from format_checks import (
    PATHS,
    ROUNDINGS,
    all_bfloat16,
    assert_rounds,
    assert_same,
    edges,
    path,
    random_floats,
    reference,
    single,
)
from gfloat import formats as oracle
from oracles import (
    FAMILIES,
    GFLOAT,
    GFLOAT_ROUNDINGS,
    ML_DTYPES,
    gfloat_codes,
    ml_codes,
    ml_rounded,
    overflow_of,
)

import altcore
from altcore import BadInput, get_format
from altcore.formats import BlockFormat, Format, code_format, float_format
from altcore.numerics import (
    COUNTS,
    Meters,
    Rule,
    amax,
    compute_dtype,
    interval_width,
    ordinal,
    round_to_grid,
)

PYPROJECT = Path(__file__).parents[3] / "plugins" / "formats" / "pyproject.toml"
ENTRIES = tomllib.loads(PYPROJECT.read_text())["project"]["entry-points"]["altcore.formats"]
NAMED = sorted(name for name in ENTRIES if "*" not in name)
IN_BLOCKS = [n for n in NAMED if n.startswith(("MX", "NV"))]
WIDE = ("BF16", "FP16", "TF32")  # 2**16 values and more: slow to go through one by one
SMALL = [n for n in NAMED if n not in (*WIDE, *IN_BLOCKS)]
SMALL += [n for pattern, names in FAMILIES.items() if pattern != "MX*" for n in names]
LARGE = ["FP16", "INT16", "posit16_2", "LOG5_10-by-log"]  # the exhaustive tests take all of them

FACTS = {
    # name: bits, largest, smallest positive, codes of NaN, codes of infinities
    "E4M3": (8, 448, 2**-9, [0x7F, 0xFF], []),
    "E5M2": (8, 57344, 2**-16, [0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF], [0x7C, 0xFC]),
    "E2M1": (4, 6, 0.5, [], []),
    "E2M3": (6, 7.5, 0.125, [], []),
    "E3M2": (6, 28, 0.0625, [], []),
    "E8M0": (8, 2.0**127, 2.0**-127, [0xFF], []),
    "E3M4": (8, 31, 2**-6, [], []),
    "E7M0": (8, 2.0**64, 2.0**-62, [], []),
    "E0M7": (8, 127 / 128, 1 / 128, [], []),
    "E1M6": (8, 127 / 32, 1 / 32, [], []),
    "E3M4IEEE": (8, 15.5, 2**-6, None, [0x70, 0xF0]),
    "E4M3IEEE": (8, 240, 2**-9, None, [0x78, 0xF8]),
    "E3M4FN": (8, 30, 2**-6, [0x7F, 0xFF], []),
    "E4M3FNUZ": (8, 240, 2**-10, [0x80], []),
    "E5M2FNUZ": (8, 57344, 2**-17, [0x80], []),
    "E4M3B11FNUZ": (8, 30, 2**-13, [0x80], []),
    "E3M4FNUZ": (8, 15.5, 2**-7, [0x80], []),
    "E4M3B4FNUZ": (8, 3840, 2**-6, [0x80], []),
    "E4M3B10IEEE": (8, 30, 2**-12, None, [0x78, 0xF8]),
    "binary8p1se": (8, 2.0**62, 2.0**-63, [0x80], [0x7F, 0xFF]),
    "binary8p2se": (8, 2.0**31, 2.0**-32, [0x80], [0x7F, 0xFF]),
    "binary8p3se": (8, 49152, 2.0**-17, [0x80], [0x7F, 0xFF]),
    "binary8p4se": (8, 224, 2**-10, [0x80], [0x7F, 0xFF]),
    "binary8p5se": (8, 15, 2**-7, [0x80], [0x7F, 0xFF]),
    "binary8p6se": (8, 3.875, 2**-6, [0x80], [0x7F, 0xFF]),
    "binary8p7se": (8, 1.96875, 2**-6, [0x80], [0x7F, 0xFF]),
    "binary8p3sf": (8, 57344, 2.0**-17, [0x80], []),
    "binary8p3ue": (8, 1.25 * 2**31, 2.0**-33, [0xFF], [0xFE]),
    "binary8p8uf": (8, 1.984375, 1 / 128, [0xFF], []),
    "binary3p2se": (3, 1, 0.5, [4], [3, 7]),
    "binary16p11sf": (16, 65504, 2.0**-25, [0x8000], []),
    "FP16": (16, 65504, 2**-24, None, [0x7C00, 0xFC00]),
    "BF16": (16, float.fromhex("0x1.FEp127"), 2.0**-133, None, [0x7F80, 0xFF80]),
    "INT4": (4, 7, 1, [], []),
    "INT8": (8, 127, 1, [], []),
    "INT2": (2, 1, 1, [], []),
    "INT16": (16, 32767, 1, [], []),
    "Q3_4": (8, 127 / 16, 1 / 16, [], []),
    "Q0_7": (8, 127 / 128, 1 / 128, [], []),
    "posit8_0": (8, 64, 1 / 64, [0x80], []),
    "posit8_1": (8, 4096, 1 / 4096, [0x80], []),
    "posit8_2": (8, 2**24, 2**-24, [0x80], []),
    "posit16_2": (16, 2**56, 2**-56, [0x8000], []),
    "LOG7_0-by-value": (8, 2**63, 2.0**-63, [0xC0], []),
    "LOG4_3-by-log": (8, single(2**7.875), single(2**-7.875), [0xC0], []),
    "BINARY": (1, 1, 1, [], []),
    "TERNARY": (2, 1, 1, [], []),
    "FP4-BNB": (4, 1, single(1 / 192), [], []),
    "NF4": (4, 1, 0.07958029955625534, [], []),
}

BLOCK_FACTS = {
    # name: element, elements that share a scale, rule, bits an element, the scale included
    "MXFP8-E4M3": ("E4M3", 32, "floor", 8.25),
    "MXFP8-E5M2": ("E5M2", 32, "floor", 8.25),
    "MXFP6-E2M3": ("E2M3", 32, "floor", 6.25),
    "MXFP6-E3M2": ("E3M2", 32, "floor", 6.25),
    "MXFP4": ("E2M1", 32, "floor", 4.25),
    "NVFP4": ("E2M1", 16, "two-level", 4.5),
    "NVFP4-square": ("E2M1", 16, "two-level", 4 + 8 / 256),
    "MXFP8-E5M2-rceil": ("E5M2", 32, "rceil", 8.25),
    "MXFP6-E3M2-ceil": ("E3M2", 32, "ceil", 6.25),
    "MXFP4-even": ("E2M1", 32, "even", 4.25),
}


def like(values, wanted):
    """Whether two sequences of floats are the same, NaN and the sign of zero included."""
    pairs = zip(values, wanted, strict=True)
    return all(
        (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
        for a, b in pairs
    )


# ------------------------------------------------------------------------------ what they are


@pytest.mark.parametrize("name", FACTS)
def test_facts(name):
    """Width, largest and smallest value and the special codes are those the standards give."""
    fmt = get_format(name)
    bits, largest, smallest, nan, infinite = FACTS[name]
    assert (fmt.bits, fmt.max, fmt.smallest) == (bits, largest, smallest)
    assert fmt.name == name
    assert nan is None or list(fmt.nan_codes) == nan
    assert infinite is None or list(fmt.inf_codes) == infinite


@pytest.mark.parametrize("name", BLOCK_FACTS)
def test_facts_of_block_formats(name):
    """Elements, length, rule and width are those of the MX specification and of NVFP4."""
    fmt = get_format(name)
    element, block, rule, bits = BLOCK_FACTS[name]
    assert fmt.element == get_format(element)
    assert (fmt.name, fmt.block, fmt.rule, fmt.bits) == (name, block, rule, bits)
    assert fmt.is_square == name.endswith("-square")
    assert fmt.scale_format == (get_format("E4M3") if name.startswith("NV") else None)


def test_mxint8():
    """Its elements are ±m / 64, as many below zero as above; gfloat has one more, -2."""
    fmt = get_format("MXINT8")
    assert (fmt.block, fmt.rule, fmt.bits) == (32, "floor", 8.25)
    assert fmt.element.values == tuple(m / 64 for m in range(-127, 128))
    theirs = [
        gfloat.decode_float(oracle.format_info_ocp_int8, code).fval
        for code in range(256)
        if code != 0x80
    ]
    assert fmt.element.values == tuple(sorted(theirs))


def test_mx_names_that_cannot_be():
    """What there is instead is said: elements, or rules; the bare name is OCP's rule."""
    for name, said in {
        "MXFP5": "did you mean MXFP4.*MXFP8-E4M3, MXFP8-E5M2, MXFP6-E2M3",
        "MXFP8": "they are MXFP8-E4M3, MXFP8-E5M2",
        "MXFP8-E3M4": "did you mean MXFP8-E",
        "MXFP4-recil": "'recil'.*did you mean rceil",
        "MXINT8-floor": "MXINT8 alone.* floor.* MXINT8-ceil, MXINT8-rceil, MXINT8-even",
        "MXFP4-": "MXFP4-rceil",
        "MXY": "did you mean MXFP4",
        "NVFP5": "did you mean NVFP4",
        "mxfp4": "did you mean MXFP4",
    }.items():
        with pytest.raises(BadInput, match=f"{name}.*{said}"):
            get_format(name)


def test_tf32():
    """TF32 has float32's range and 10 mantissa bits; rounding is that of float32's bits."""
    fmt = get_format("TF32")
    assert fmt.bits == 19
    assert fmt.max == float.fromhex("0x1.FFCp127")
    assert fmt.smallest == 2.0**-136
    x = random_floats(20000)
    bits = x.view(torch.int32).long() & 0xFFFFFFFF
    rounded = (bits + 0xFFF + ((bits >> 13) & 1)) >> 13 << 13
    wanted = rounded.to(torch.int32).view(torch.float32)
    for way in PATHS:
        with path(way):
            assert_same(round_to_grid(x, fmt, Rule(overflow="inf")), wanted, x)


@pytest.mark.parametrize("name", ML_DTYPES)
def test_codes_are_those_of_ml_dtypes(name):
    """Every code means what it means in ml_dtypes, the sign of zero included."""
    fmt = get_format(name)
    assert like(fmt.code_values, ml_codes(fmt, ML_DTYPES[name]))


@pytest.mark.parametrize(("name", "dtype"), [("INT4", ml_dtypes.int4), ("INT2", ml_dtypes.int2)])
def test_integers_are_those_of_ml_dtypes(name, dtype):
    """The codes of INTn are two's complement, as ml_dtypes has them in the low bits of a byte."""
    fmt = get_format(name)
    held = np.array(fmt.code_values).astype(dtype)
    assert held.astype(np.float64).tolist() == list(fmt.code_values)
    mask = (1 << fmt.bits) - 1
    assert [int(c) & mask for c in held.view(np.uint8)] == list(range(mask + 1))


@pytest.mark.parametrize("name", GFLOAT)
def test_codes_are_those_of_gfloat(name):
    """Every code means what it means in gfloat: IEEE P3109 and OCP, MXINT8's element as Q1_6."""
    fmt = get_format(name)
    assert like(fmt.code_values, gfloat_codes(fmt, GFLOAT[name]))


def test_bitsandbytes_fp4():
    """FP4-BNB is bitsandbytes' table over its largest value, in its code order."""
    wanted = np.array([0, 0.0625, 8, 12, 4, 6, 2, 3], np.float32) / np.float32(12)
    fmt = get_format("FP4-BNB")
    assert fmt.code_values[:8] == tuple(wanted.tolist())
    assert like(fmt.code_values[8:], (-wanted).tolist())


def test_nf4_is_quantiles_of_a_normal_distribution():
    """The paper's construction: eight positive and seven negative quantiles, and zero."""
    # From halfway between 1 - 1/30 and 1 - 1/32, evenly down to 1/2.
    top = 1 - (1 / 30 + 1 / 32) / 2

    def quantiles(count):
        probabilities = [top + (0.5 - top) * i / count for i in range(count)]
        found = [NormalDist().inv_cdf(p) for p in probabilities]
        return [q / found[0] for q in found]

    expected = sorted([*quantiles(8), 0.0, *(-q for q in quantiles(7))])
    assert get_format("NF4").values == pytest.approx(expected, abs=2e-7)


def test_bare_names_that_meet_a_variant():
    """A standard's name and the variant that spells it out are the same values in every code."""
    for a, b in (("E4M3", "E4M3FN"), ("E5M2", "E5M2IEEE"), ("FP16", "E5M10IEEE")):
        assert like(get_format(a).code_values, get_format(b).code_values)
    for bare in ("E2M1", "E2M3", "E3M2"):
        exponent, mantissa = int(bare[1]), int(bare[3])
        assert get_format(bare) == float_format(bare, exponent, mantissa)
    assert get_format("INT8").code_values == tuple(8 * v for v in get_format("Q4_3").code_values)


# ------------------------------------------------------------------- rounding, against oracles


def ml_inputs(name, x):
    """Leave out what ml_dtypes cannot do: see the reasons."""
    if name.startswith("E8M0"):
        # Not a number of E8M0 (zero and negatives are NaN there); float32's subnormal numbers
        # are all rounded up there, by up to half a step too far.
        x = x[(x >= 2.0**-126) | torch.isnan(x)]
    if not get_format(name).nan_codes:
        x = x[~torch.isnan(x)]  # there: zero, or the largest value
    return x


@pytest.mark.parametrize("name", ML_DTYPES)
def test_rounding_is_that_of_ml_dtypes(name):
    """Nearest even: every midpoint and its neighbours, all of bfloat16, and random floats.

    Signs of zero are kept; FNUZ has none in ml_dtypes, and the code here has none either.
    """
    fmt = get_format(name)
    for x in (edges(fmt), all_bfloat16(), random_floats(20000)):
        x = ml_inputs(name, x)
        wanted = ml_rounded(x, ML_DTYPES[name])
        for way in PATHS:
            with path(way):
                got = round_to_grid(x, fmt, Rule(overflow=overflow_of(fmt)))
            if name.endswith("FNUZ"):
                got = got + 0.0
            assert_same(got, wanted, x)


@pytest.mark.parametrize("name", [n for n in GFLOAT if n not in WIDE])
def test_rounding_is_that_of_gfloat(name):
    """Every rounding mode, at every midpoint and its neighbours and for random floats.

    Saturating where gfloat does, and with overflow to infinity or NaN. Directed rounding never
    reaches infinity in gfloat; here that is the overflow rule's business.
    """
    fmt, info = get_format(name), GFLOAT[name]
    x = torch.cat([edges(fmt, most=150), random_floats(100)])
    x = x[torch.isfinite(x)]
    if name == "E8M0":
        x = x[x >= fmt.smallest]  # gfloat goes on below it
    for rounding, mode in GFLOAT_ROUNDINGS.items():
        wanted = [gfloat.round_float(info, v, mode, sat=True) for v in x.double().tolist()]
        got = round_to_grid(x, fmt, Rule(rounding))
        assert_same(got + 0.0, torch.tensor(wanted) + 0.0, x)
    overflow = overflow_of(fmt)
    if overflow != "saturate":
        wanted = [gfloat.round_float(info, v) for v in x.double().tolist()]
        got = round_to_grid(x, fmt, Rule(overflow=overflow))
        assert_same(got + 0.0, torch.tensor(wanted) + 0.0, x)


# ------------------------------------------------------------------ both paths, one definition


@pytest.mark.parametrize("name", SMALL)
def test_both_paths_are_the_reference(name):
    """Values and overflow counts, in every rounding, at all edges and for random floats."""
    fmt = get_format(name)
    for rounding in ROUNDINGS:
        most = 1000 if rounding == "nearest-even" else 60
        assert_rounds(torch.cat([edges(fmt, most=most), random_floats(60)]), fmt, rounding)


@pytest.mark.parametrize("name", SMALL)
def test_float64_is_rounded_once(name):
    """float64 input meets the boundaries in float64, a step of which float32 does not see."""
    fmt = get_format(name)
    x = edges(fmt, torch.float64, most=60)
    for rounding in ("nearest-even", "up"):
        assert_same(round_to_grid(x, fmt, Rule(rounding)), reference(x, fmt, rounding), x)


@pytest.mark.parametrize("name", SMALL)
def test_bfloat16_input(name):
    """A sample of all bfloat16 numbers, in both paths."""
    fmt = get_format(name)
    x = all_bfloat16()[sum(map(ord, name)) % 251 :: 251]
    wanted = reference(x, fmt)
    for way in PATHS:
        with path(way):
            assert_same(round_to_grid(x, fmt), wanted, x)


@pytest.mark.parametrize("name", SMALL)
def test_overflow_to_codes(name):
    """To infinity or NaN where there is such a code; refused, naming the format, where not."""
    fmt = get_format(name)
    x = torch.tensor([float(fmt.beyond[1]), fmt.max, -fmt.max, math.inf, -math.inf, math.nan])
    for overflow, codes in (("inf", fmt.inf_codes), ("nan", fmt.nan_codes)):
        if not codes:
            with pytest.raises(BadInput, match=name):
                round_to_grid(x, fmt, Rule(overflow=overflow))
            continue
        wanted = reference(x, fmt, overflow=overflow)
        for way in PATHS:
            with path(way):
                assert_same(round_to_grid(x, fmt, Rule(overflow=overflow)), wanted, x)


@pytest.mark.parametrize("name", SMALL)
def test_stochastic_rounding(name):
    """Both paths draw the same of the two neighbours, the upper one as often as it is near."""
    fmt = get_format(name)
    x = random_floats(2000) if fmt.max > 1e9 else torch.linspace(-fmt.max, fmt.max, 2000)
    results = []
    for way in PATHS:
        with path(way):
            results.append(round_to_grid(x, fmt, Rule("stochastic"), key=7))
    assert_same(*results)
    down, up = (reference(x, fmt, rounding) for rounding in ("down", "up"))
    missing = torch.isnan(x)
    assert ((results[0] == down) | (results[0] == up) | missing).all()

    low = fmt.index_of(fmt.smallest)
    low = min(max(low, 0), len(fmt.values) - 2)
    a, b = fmt.values[low], fmt.values[low + 1]
    y = torch.full((40000,), 0.75 * a + 0.25 * b, dtype=compute_dtype(torch.float32, fmt))
    share = (round_to_grid(y, fmt, Rule("stochastic"), key=3) == single_like(b, y)).double()
    assert abs(share.mean() - 0.25) < 0.015


def test_a_sample_of_a_large_format():
    """Some edges of a 16-bit format; the exhaustive tests try all of them."""
    fmt = get_format("posit16_2")
    x = torch.cat([edges(fmt, most=300), random_floats(100)])
    wanted = reference(x, fmt)
    for way in PATHS:
        with path(way):
            assert_same(round_to_grid(x, fmt), wanted, x)


def single_like(value, tensor):
    return torch.tensor(value, dtype=torch.float64).to(tensor.dtype)


def test_beyond_float32():
    """Formats beyond float32's range compute in float64, and say so."""
    for name in ("posit6_5", "posit8_5", "E4M3B200FNUZ", "LOG9_0-by-value"):
        fmt = get_format(name)
        assert compute_dtype(torch.float32, fmt) == torch.float64
        x = edges(fmt, torch.float64, most=300)
        assert_same(round_to_grid(x, fmt), reference(x, fmt), x)


# ------------------------------------------------------------------------------------- codes


@pytest.mark.parametrize("name", [*SMALL, "FP16"])
def test_encode_and_decode(name):
    """Decoding and encoding again gives the code back, or the first code of the same value."""
    fmt = get_format(name)
    codes = torch.arange(len(fmt.code_values))
    values = altcore.decode(codes, fmt)
    dtype = compute_dtype(torch.float32, fmt)
    assert_same(values, torch.tensor(fmt.code_values, dtype=torch.float64).to(dtype))
    overflow = "inf" if fmt.inf_codes else "saturate"
    if not fmt.nan_codes:
        assert not torch.isnan(values).any()
    for way in PATHS:
        with path(way):
            back = altcore.encode(values, fmt, overflow=overflow)
        assert back.dtype == (torch.uint8 if fmt.bits <= 8 else torch.int32)
        first = {}
        for code, value in enumerate(fmt.code_values):
            first.setdefault(repr(value), code)
        assert back.tolist() == [first[repr(value)] for value in fmt.code_values]
    assert fmt.code_of(fmt.smallest) == first[repr(fmt.smallest)]


def test_encode_what_has_no_code():
    """NaN without a NaN code, and codes that do not exist, are refused by the format's name."""
    for name in ("INT8", "E2M1", "TERNARY"):
        with pytest.raises(BadInput, match=name):
            altcore.encode(torch.tensor([math.nan]), name)
    with pytest.raises(BadInput, match="TERNARY"):
        altcore.decode(torch.tensor([3]), "TERNARY")
    for name in ("E4M3FNUZ", "binary8p4se", "INT8", "posit8_1", "E4M3B11FNUZ"):  # no -0: 0
        assert altcore.encode(torch.tensor([-0.0]), name) == 0
    assert altcore.encode(torch.tensor([-0.0]), "FP4-BNB") == 8


@pytest.mark.parametrize("name", SMALL)
def test_places_on_the_grid(name):
    """Every value's position is its index, and its interval the next one away from zero."""
    fmt = get_format(name)
    dtype = compute_dtype(torch.float32, fmt)
    values = torch.tensor(fmt.values, dtype=torch.float64).to(dtype)
    assert torch.equal(ordinal(values, fmt), torch.arange(len(fmt.values)))
    positive = [v for v in fmt.values if v > 0]
    inside = torch.tensor(positive[:-1], dtype=torch.float64).to(dtype)
    following = torch.tensor(positive[1:], dtype=torch.float64).to(dtype)
    assert torch.equal(interval_width(inside, fmt), following - inside)
    if len(fmt.values) > 2:
        assert altcore.ulp_distance(values[1:], values[:-1], fmt).eq(1).all()


# ------------------------------------------------------------------------------------ rules


def test_ties_of_one_bit_of_precision():
    """3 lies midway between 2 and 4: even takes the even exponent code, up 4, down 2."""
    x = torch.tensor([3.0, -3.0, 6.0, -6.0])
    for name, wanted in (
        ("E7M0", [2, -2, 8, -8]),  # bias 63: 2 is code 64
        ("E8M0", [2, 2.0**-127, 8, 2.0**-127]),  # bias 127: 2 is code 128
        ("binary8p1se", [4, -4, 4, -4]),  # bias 64: 2 is code 65
        ("E7M0-ties-up", [4, -4, 8, -8]),
        ("E7M0-ties-down", [2, -2, 4, -4]),
        ("E7M0-by-log", [4, -4, 8, -8]),
        ("E8M0-ties-up", [4, 2.0**-127, 8, 2.0**-127]),
    ):
        for way in PATHS:
            with path(way):
                got = round_to_grid(x, get_format(name))
            assert got.tolist() == wanted, name


def test_ties_up_and_down_are_of_nearest_only():
    """The rule moves the midpoints and nothing else; nearest-away takes them away anyway."""
    up, down, even = (get_format(f"E7M0{s}") for s in ("-ties-up", "-ties-down", ""))
    x = random_floats(3000)
    assert_same(round_to_grid(x, up), round_to_grid(x, even, Rule("nearest-away")))
    for rounding in ("nearest-away", "to-zero", "up", "down"):
        for fmt in (up, down):
            got = round_to_grid(x, fmt, Rule(rounding))
            assert_same(got, round_to_grid(x, even, Rule(rounding)))


def test_integers_under_amax_scaling_do_not_overflow():
    """-128 to 127 has 127 for its largest magnitude: scaled tensors keep both signs."""
    for name in ("INT8", "INT4", "Q3_4", "INT2"):
        fmt = get_format(name)
        for sign in (1.0, -1.0):
            x = torch.randn(1000, generator=torch.Generator().manual_seed(1)) * 3
            x[0] = sign * 20
            q, s = altcore.quantize(x, fmt)
            counts = torch.zeros(len(COUNTS), dtype=torch.int64)
            round_to_grid(x, fmt, r=fmt.max / amax(x), meters=Meters(counts))
            assert counts[COUNTS.index("overflow")] == 0
            assert q.abs().max() == fmt.max
            assert (q[0] * s - x[0]).abs() < 1e-5
    q = round_to_grid(torch.tensor([-128.4, -200.0, 127.4, 127.5, -128.5]), get_format("INT8"))
    assert q.tolist() == [-128, -128, 127, 127, -128]


def test_scale_format_without_zero():
    """E8M0 takes what it cannot hold, zero and negatives, for the smallest value, counted."""
    x = torch.tensor([0.0, -1.0, 2.0**-128, 2.0**-129, -math.inf])
    counts = torch.zeros(len(COUNTS), dtype=torch.int64)
    q = round_to_grid(x, get_format("E8M0"), meters=Meters(counts))
    assert (q == 2.0**-127).all()
    assert dict(zip(COUNTS, counts.tolist(), strict=True)) == {
        "elements": 5,
        "overflow": 3,
        "flushed": 0,
        "nonfinite": 1,
    }
    codes = altcore.encode(torch.tensor([1.0, math.nan, 2.0**127]), "E8M0")
    assert codes.tolist() == [127, 255, 254]


def test_binary_keeps_signs():
    """BINARY has no zero: zero becomes 1, every negative number -1."""
    x = torch.tensor([0.0, -0.0, 1e-40, -1e-40, 0.7, -3.0])
    for way in PATHS:
        with path(way):
            assert round_to_grid(x, get_format("BINARY")).tolist() == [1, 1, 1, -1, 1, -1]


# ------------------------------------------------------------------------- formats of codes


def test_equality_and_pickle():
    """A format with NaN equals its copy, hashes alike, and differs where one code differs."""
    for name in SMALL:
        fmt = get_format(name)
        copy = pickle.loads(pickle.dumps(fmt))
        assert copy == fmt
        assert hash(copy) == hash(fmt)
        assert copy.code_values is not None
    nan = float("nan")
    a, b = (code_format("a", [0.0, z, 1.0, nan]) for z in (-0.0, 0.0))
    assert a != b
    assert a == code_format("a", [0.0, -0.0, 1.0, float("nan")])
    assert a != code_format("a", [0.0, -0.0, 1.0, nan], ties="up")


def test_codes_in_any_order():
    """Codes need no order: what rounds is the values, and a code is its place in the list."""
    fmt = code_format("shuffled", [2.0, -1.0, math.inf, 0.0, -math.inf, 0.5, -0.0, math.nan])
    assert fmt.values == (-1.0, 0.0, 0.5, 2.0)
    assert (fmt.bits, fmt.max, fmt.smallest, fmt.nan_codes, fmt.inf_codes) == (
        3,
        1,
        0.5,
        (7,),
        (2, 4),
    )
    x = torch.tensor([1.9, -0.8, 9.0, 0.1, -9.0, 0.3, -0.1, math.nan])
    assert altcore.encode(x, fmt, overflow="inf").tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert_rounds(torch.cat([edges(fmt), random_floats(100)]), fmt)


def test_boundaries_of_ones_own():
    """Boundaries are where nearest changes sides; one that is a value leaves that value alone."""
    fmt = code_format("own", [-1, 0, 1, 3], boundaries=[-1.5, -1, 0, 1.25, 5], beyond=(-2, 6))
    assert fmt.boundaries == (-1, 0, 1.25)
    assert fmt.limits == (-1.5, 5)
    x = torch.tensor([-1.6, -1.4, -1, -0.99, -1e-30, 0, 1e-30, 1, 1.24, 1.26, 4.9, 5.1])
    wanted = [-1, -1, -1, 0, 0, 0, 1, 1, 1, 3, 3, 3]
    for way in PATHS:
        with path(way):
            assert round_to_grid(x, fmt).tolist() == wanted
    for rounding in ROUNDINGS:
        assert_rounds(torch.cat([edges(fmt), random_floats(200)]), fmt, rounding)


@pytest.mark.parametrize(
    ("why", "values", "rules"),
    [
        ("at least two", [1.0], {}),
        ("at least two", [math.nan, math.inf, -math.inf], {}),
        ("no positive", [-1.0, 0.0], {}),
        ("one infinity", [-1.0, 1.0, math.inf], {}),
        ("one infinity", [0.0, 1.0, -math.inf], {}),
        ("ties is", [0.0, 1.0], {"ties": "away"}),
        ("beyond", [0.0, 1.0], {"beyond": (0, 2)}),
        ("beyond", [0.0, 1.0], {"beyond": (-1, 0.5)}),
        ("boundaries", [0.0, 1.0], {"boundaries": [0.5]}),
        ("boundary 1", [0.0, 1.0], {"boundaries": [-0.5, 1.5, 1.5]}),
        ("at most", [0.0] * (2**19) + [1.0], {}),
    ],
)
def test_impossible_codes(why, values, rules):
    """Each impossible thing is refused with the format's name and what is wrong."""
    with pytest.raises(BadInput, match=f"mine.*{why}"):
        code_format("mine", values, **rules)


# ----------------------------------------------------------------------------- names, plugin


def test_every_entry_is_what_it_says():
    """Each named entry point gives a format of that name; each family has a test above."""
    from altcore.registry import entries

    installed = {e.name: e for e in entries() if e.distribution == "altcore-formats"}
    assert set(installed) == set(ENTRIES)
    for name in NAMED:
        assert get_format(name).name == name
        assert isinstance(get_format(name), BlockFormat if name in IN_BLOCKS else Format)
    assert set(IN_BLOCKS) == {*BLOCK_FACTS, "MXINT8"} & set(NAMED)
    assert set(FAMILIES) == {name for name in ENTRIES if "*" in name}
    for pattern, names in FAMILIES.items():
        family = installed[pattern].load()
        for name in names:
            assert family(name) == get_format(name)
            assert get_format(name).name == name
        assert family("MINE") is None


@pytest.mark.parametrize(
    "name",
    [
        *("E9M9", "E0M0", "E0M3IEEE", "E3M2FN", "E1M0IEEE", "E12M3FNUZ", "E4M3B5000FNUZ"),
        *("INT1", "INT17", "INT0", "Q0_0", "Q9_9", "posit2_0", "posit17_1", "posit8_9"),
        *(
            "LOG4_3",
            "LOG4_3-by",
            "LOG0_7-by-log",
            "LOG11_2-by-log",
            "LOG9_9-by-log",
            "LOG1_0-by-log",
        ),
        *("binary8p0se", "binary8p8se", "E7M0-ties-even", "E0M0-by-log", "E4M3-by-log", "INT08"),
        *("posit8", "Q3.4", "E4M3FNU", "NOSUCH"),
    ],
)
def test_bad_names(name):
    """A name that cannot be is refused with that name in the message."""
    with pytest.raises(BadInput, match=name.replace(".", r"\.")):
        get_format(name)


def test_a_logarithmic_name_says_how_it_rounds():
    """LOG4_3 alone could mean either rounding: the message offers both names."""
    with pytest.raises(BadInput, match="LOG4_3-by-value or LOG4_3-by-log"):
        get_format("LOG4_3")


def test_the_package_needs_no_torch():
    """Formats are data: importing all of them, and building one of each, imports no torch."""
    names = [*NAMED, *(n for names in FAMILIES.values() for n in names)]
    code = (
        "import sys; from altcore import get_format\n"
        f"for name in {names!r}: get_format(name)\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["INT8", "posit8_1", "LOG4_3-by-log", "binary8p3se", "BINARY"])
def test_a_run_trains_in_it(start, name):
    """A tiny run with all weights stored in the format goes through, and stays on the grid."""
    result = start(format=name, recipe="pure")
    assert (result.steps_completed, result.failure_reason) == (3, None)
    assert math.isfinite(result.final_loss)


# -------------------------------------------------------------------------------- exhaustive


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [*SMALL, *LARGE])
def test_all_bfloat16_numbers(name):
    """Every bfloat16 number, in both paths."""
    fmt, x = get_format(name), all_bfloat16()
    wanted = reference(x, fmt)
    for way in PATHS:
        with path(way):
            assert_same(round_to_grid(x, fmt), wanted, x)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", LARGE)
def test_all_edges_of_large_formats(name):
    """Every value, midpoint and boundary of a 16-bit format with its neighbours, both paths."""
    fmt = get_format(name)
    x = edges(fmt, most=1 << 20)
    wanted = reference(x, fmt)
    for way in PATHS:
        with path(way):
            assert_same(round_to_grid(x, fmt), wanted, x)
    test_encode_and_decode(name)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [n for n in ML_DTYPES if n not in WIDE])
def test_many_float32_numbers_against_ml_dtypes(name):
    """Of each 256 successive float32 numbers one, a different one by format."""
    fmt, offset = get_format(name), sum(map(ord, name)) % 256
    for start in range(-(2**31), 2**31, 2**29):
        bits = torch.arange(start + offset, start + 2**29, 256)
        x = ml_inputs(name, bits.to(torch.int32).view(torch.float32))
        got = round_to_grid(x, fmt, Rule(overflow=overflow_of(fmt)))
        got = got + 0.0 if name.endswith("FNUZ") else got
        assert_same(got, ml_rounded(x, ML_DTYPES[name]), x)
