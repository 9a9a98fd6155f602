"""Posits against the Posit Standard (2022), written out again here: decoding, and rounding.

The decoding is the standard's formula for codes of either sign; the rounding is the standard's
by strings of bits: write the number as an endless posit, cut it, round the code to nearest even.
Other numbers of exponent bits than the standard's two are those of the earlier drafts.
"""

import math
import random
from fractions import Fraction

import pytest
import torch
from format_checks import (
    PATHS,
    all_bfloat16,
    assert_rounds,
    assert_same,
    edges,
    path,
    random_floats,
)

from altcore import get_format
from altcore.formats import round_scalar
from altcore.numerics import COUNTS, Meters, Rule, compute_dtype, round_to_grid

SIZES = [(8, 0), (8, 1), (8, 2), (6, 2), (5, 3), (4, 0), (3, 1), (3, 0), (9, 1), (7, 4)]
LARGE = [(16, 1), (16, 2), (12, 3)]


def name_of(size):
    return f"posit{size[0]}_{size[1]}"


def decoded(code, size):
    """The standard's formula: ((1 - 3s) + f) * 2**((1 - 2s) * (2**es * r + e + s))."""
    n, es = size
    bits = [code >> i & 1 for i in reversed(range(n))]
    s, rest = bits[0], bits[1:]
    if not any(rest):
        return math.nan if s else 0.0
    k = 0
    while k < len(rest) and rest[k] == rest[0]:
        k += 1
    r = k - 1 if rest[0] else -k
    tail = rest[k + 1 :]
    e = sum(bit << (es - 1 - i) for i, bit in enumerate(tail[:es]))
    f = sum(Fraction(bit, 2 ** (i + 1)) for i, bit in enumerate(tail[es:]))
    return float(((1 - 3 * s) + f) * Fraction(2) ** ((1 - 2 * s) * (2**es * r + e + s)))


def rounded_code(x, size):
    """The code of a number: its endless posit cut to n bits, to nearest even, never 0 or NaR."""
    n, es = size
    if math.isnan(x):
        return 1 << (n - 1)
    if x == 0:
        return 0
    if x < 0:
        return (1 << n) - rounded_code(-x, size)
    last = (1 << (n - 1)) - 1
    if math.isinf(x):
        return last
    significand, power = math.frexp(x)
    exponent = power - 1
    fraction = Fraction(significand) * 2 - 1
    r, e = divmod(exponent, 1 << es)
    string = "1" * (r + 1) + "0" if r >= 0 else "0" * -r + "1"
    string += f"{e:0{es}b}" if es else ""
    while fraction:
        fraction *= 2
        string += str(int(fraction >= 1))
        fraction -= fraction >= 1
    string = string.ljust(n, "0")
    kept, cut = int(string[: n - 1], 2), string[n - 1 :]
    if cut[0] == "1" and ("1" in cut[1:] or kept % 2):
        kept += 1
    return min(max(kept, 1), last)


def wanted_of(x, size):
    """What the standard makes of each element, in the dtype of the computation."""
    fmt = get_format(name_of(size))
    values = [decoded(rounded_code(v, size), size) for v in x.double().tolist()]
    values = [
        math.copysign(0.0, v) if w == 0 else w for v, w in zip(x.tolist(), values, strict=True)
    ]
    return torch.tensor(values, dtype=torch.float64).to(compute_dtype(x.dtype, fmt))


def assert_codes(size):
    fmt = get_format(name_of(size))
    wanted = [decoded(code, size) for code in range(1 << size[0])]
    assert fmt.bits == size[0]
    pairs = zip(fmt.code_values, wanted, strict=True)
    assert all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in pairs)
    assert fmt.nan_codes == (1 << (size[0] - 1),)


def assert_standard_rounding(x, size):
    fmt, wanted = get_format(name_of(size)), wanted_of(x, size)
    for way in PATHS:
        with path(way):
            assert_same(round_to_grid(x, fmt), wanted, x)


def test_known_values():
    """Values that the standard and its authors publish."""
    assert get_format("posit8_2").code_values[0x40] == 1.0
    assert get_format("posit8_2").code_values[0x01] == 2.0**-24
    assert get_format("posit16_3").code_values[0b0000110111011101] == 477 / 134217728
    positive = (0.25, 0.5, 0.75, 1, 1.5, 2, 4)
    assert get_format("posit4_0").code_values[1:8] == positive


@pytest.mark.parametrize("size", SIZES, ids=name_of)
def test_codes(size):
    """Every code, of either sign, means what the standard's formula says; the top one is NaR."""
    assert_codes(size)


@pytest.mark.parametrize("size", SIZES, ids=name_of)
def test_rounding(size):
    """Both paths round as the bits say: at all boundaries, in bfloat16's range, and anywhere."""
    fmt = get_format(name_of(size))
    offset = random.Random(name_of(size)).randrange(397)
    for x in (edges(fmt), all_bfloat16()[offset::397].float(), random_floats(200)):
        assert_standard_rounding(x, size)
    x = edges(fmt, torch.float64, most=100)
    assert_standard_rounding(x, size)


@pytest.mark.parametrize("size", SIZES, ids=name_of)
def test_the_reference_rounds_as_the_standard(size):
    """`round_scalar` takes every boundary, and exact fractions beside it, to the standard's."""
    fmt = get_format(name_of(size))
    for x in edges(fmt, torch.float64, most=100).tolist():
        wanted = decoded(rounded_code(x, size), size)
        got = round_scalar(x, fmt)
        assert got == wanted or (math.isnan(got) and math.isnan(x))
    tiny = Fraction(1, 2**2000)
    assert round_scalar(tiny, fmt) == fmt.smallest
    assert round_scalar(-tiny, fmt) == -fmt.smallest
    for i, point in list(enumerate(fmt.boundaries))[:: len(fmt.values) // 40 + 1]:
        if point != 0:
            assert round_scalar(point - tiny, fmt) == fmt.values[i]
            assert round_scalar(point + tiny, fmt) == fmt.values[i + 1]


@pytest.mark.parametrize("size", SIZES, ids=name_of)
def test_a_number_never_becomes_zero_or_nar(size):
    """Rounding to nearest saturates at both ends; counted are overflows, and never a flush."""
    fmt = get_format(name_of(size))
    x = torch.tensor([1e-45, -1e-45, 3e38, -3e38, math.inf, -math.inf, 0.0])
    counts = torch.zeros(len(COUNTS), dtype=torch.int64)
    for way in PATHS:
        with path(way):
            q = round_to_grid(x, fmt, meters=Meters(counts))
        least, most = fmt.smallest, fmt.max
        assert q.tolist() == [least, -least, most, -most, most, -most, 0]
    assert counts[COUNTS.index("flushed")] == 0
    assert counts[COUNTS.index("overflow")] in (0, 4)  # 0: 3e38 is not past the largest
    nan = round_to_grid(x, fmt, Rule(overflow="nan"))
    assert torch.isnan(nan[4:6]).all()
    assert torch.isfinite(nan[:2]).all()


def test_boundaries_are_the_longer_posits():
    """Between neighbours sides change at the posit with one more bit, not at the midpoint."""
    fmt = get_format("posit8_2")
    longer = get_format("posit9_2").values
    assert [float(b) for b in fmt.boundaries if b] == [
        v for v in longer[2:-2] if v not in fmt.values and abs(v) > fmt.smallest
    ]
    i = fmt.index_of(fmt.smallest)
    low, high = fmt.values[i : i + 2]
    assert (low, high) == (2.0**-24, 2.0**-20)
    assert fmt.boundaries[i] == Fraction(2) ** -22  # the midpoint is above 2**-21
    assert fmt.boundaries[i - 1] == 0
    assert fmt.beyond[1] == 2**28  # the largest value of posit9_2
    assert fmt.limits[1] == 2**26  # counted as overflow from here: 2**24 before, 2**28 after
    assert get_format("posit8_0").limits[1] == 96  # of 64 and 128, without exponent bits


def test_other_roundings_take_values():
    """Directed, to zero and stochastic rounding go by value: there a number may become zero."""
    fmt = get_format("posit8_1")
    tiny = torch.full((20000,), fmt.smallest / 4)
    for rounding, wanted in (("to-zero", 0.0), ("down", 0.0), ("up", fmt.smallest)):
        assert (round_to_grid(tiny, fmt, Rule(rounding)) == wanted).all()
    drawn = round_to_grid(tiny, fmt, Rule("stochastic"), key=1)
    assert abs((drawn == fmt.smallest).double().mean() - 0.25) < 0.02
    for rounding in ("nearest-away", "to-zero", "up", "down"):
        assert_rounds(torch.cat([edges(fmt, most=100), random_floats(100)]), fmt, rounding)


@pytest.mark.exhaustive
@pytest.mark.parametrize("size", LARGE, ids=name_of)
def test_codes_of_long_posits(size):
    """Every code of longer posits."""
    assert_codes(size)


@pytest.mark.exhaustive
@pytest.mark.parametrize("size", [*SIZES, *LARGE], ids=name_of)
def test_rounding_of_everything(size):
    """All bfloat16 numbers, and all boundaries of longer posits."""
    assert_standard_rounding(all_bfloat16().float(), size)
    assert_standard_rounding(edges(get_format(name_of(size)), most=1 << 17), size)
