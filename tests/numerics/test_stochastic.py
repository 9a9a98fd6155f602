"""Stochastic rounding by a few random bits: expectations, every path, and what is refused."""

import math
from fractions import Fraction

import gfloat
import gfloat.formats
import pytest
import torch
from format_checks import PATHS, assert_same, path
from grid_formats import E3M4, E4M3, normal
from hypothesis import given, settings
from hypothesis import strategies as st

import altcore
from altcore import Stochastic, fake_quantize, float_format, table_format
from altcore.errors import BadInput
from altcore.numerics import Rule, round_to_grid
from altcore.numerics.hashing import random_bits
from altcore.numerics.torch_rounding import round_unscaled

NF = table_format("uneven", [-3.0, -1.0, -0.25, 0.0, 0.5, 1.25, 4.0])
GAPPED = float_format("E3M2-normals", 3, 2, subnormals=False)
FEW = st.builds(Stochastic, st.integers(1, 12), st.sampled_from(["centred", "floor"]))


def every_draw(x, fmt, stochastic, dtype=torch.float32):
    """What ``x`` is rounded to by each value of the random bits; the bits below are arbitrary."""
    bits = stochastic.random_bits
    low = random_bits(torch.Size([2**bits]), 1, torch.device("cpu")).long() & ((1 << 32 - bits) - 1)
    noise = (torch.arange(2**bits) << (32 - bits)) | low
    y = torch.full((2**bits,), x, dtype=dtype)
    return round_unscaled(y, fmt, Rule("stochastic", stochastic=stochastic), noise.int())[0]


def expectation(x, below, above, stochastic):
    """floor(x) + 2^-R floor(2^R f), towards zero; plus a half within the brackets if centred."""
    inner, outer = sorted((Fraction(below), Fraction(above)), key=abs)
    count, width = 2**stochastic.random_bits, outer - inner
    part = Fraction(0) if stochastic.few_bits == "floor" else Fraction(1, 2)
    drawn = math.floor(count * (Fraction(x) - inner) / width + part)
    return inner + width * Fraction(drawn, count)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fmt", [E4M3, E3M4, GAPPED, NF], ids=str)
@settings(max_examples=60)
@given(few=FEW, share=st.fractions(0, 1, max_denominator=2**14), data=st.data())
def test_the_expectation_is_exact(fmt, dtype, few, share, data):
    below, above = data.draw(st.sampled_from(list(zip(fmt.values, fmt.values[1:], strict=False))))
    x = torch.tensor(below + float(share) * (above - below), dtype=dtype).item()
    drawn = every_draw(x, fmt, few, dtype)
    assert set(drawn.tolist()) <= {below, above}
    mean = sum(map(Fraction, drawn.tolist())) / len(drawn)
    assert mean == expectation(x, below, above, few)


def test_floor_is_biased_towards_zero_and_centred_nearly_not():
    """0.1 of an interval with two bits: floor never rounds away."""
    assert (
        every_draw(1.1, table_format("whole", [0, 1, 2]), Stochastic(2, "floor")).tolist()
        == [1] * 4
    )
    found = every_draw(1.13, table_format("whole", [0, 1, 2]), Stochastic(2))
    assert sorted(found.tolist()) == [1, 1, 1, 2]


@pytest.mark.parametrize(
    ("few_bits", "mode"),
    [("floor", "StochasticFastest"), ("centred", "StochasticFast")],
)
def test_gfloat_agrees(few_bits, mode):
    fmt, info = E4M3, gfloat.formats.format_info_ocp_e4m3
    for x in normal(40).double().tolist():
        drawn = every_draw(x, fmt, Stochastic(3, few_bits)).tolist()
        single = torch.tensor(x).item()
        rounded = [
            gfloat.round_float(info, single, gfloat.RoundMode[mode], True, srbits=k, srnumbits=3)
            for k in range(8)
        ]
        assert sorted(drawn) == sorted(rounded)


@settings(max_examples=25)
@given(few=FEW, key=st.integers(0, 2**40), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_every_path_draws_the_same(few, key, dtype):
    x = normal(3, 301).mul(3).to(dtype)
    rule = Rule("stochastic", stochastic=few)
    for fmt in (E4M3, GAPPED, NF):
        with path("torch"):
            wanted = round_to_grid(x, fmt, rule, key=key)
        for way in PATHS:
            with path(way):
                assert_same(round_to_grid(x, fmt, rule, key=key), wanted, x)


def test_all_bits_are_the_usual_rounding():
    x = normal(64, 64)
    usual = fake_quantize(x, "E5M2", rounding="stochastic", key=3)
    assert_same(fake_quantize(x, "E5M2", rounding=Stochastic(), key=3), usual)
    assert not torch.equal(fake_quantize(x, "E5M2", rounding=Stochastic(2), key=3), usual)


def test_what_is_no_setting_is_refused():
    for wrong, said in (
        (Stochastic(0), "random_bits: a whole number from 1 to 32 is needed, not 0"),
        (Stochastic(33), "not 33"),
        (Stochastic(2.5), "not 2.5"),
        (Stochastic(4, "flor"), "unknown few_bits 'flor'"),
    ):
        with pytest.raises(BadInput, match=said):
            altcore.quantize(torch.ones(3), "E4M3", rounding=wrong, key=1)
