"""Rounding to the nearest logarithm: any format, against formats that state it and decimals."""

import math
from decimal import Decimal, localcontext
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
    reference,
)

from altcore import get_format
from altcore.errors import BadInput
from altcore.formats import code_format, float_format, log_boundary, table_format
from altcore.numerics import Rule, fake_round, round_to_grid
from altcore.numerics.rounding_constants import thresholds

E4M3 = float_format("E4M3", 4, 3, specials="fn")
E7M0 = float_format("E7M0", 7, 0)
FLAT = float_format("flat", 3, 2, subnormals=False)
WIDE = float_format("E9M0", 9, 0)
NATURAL = table_format("natural", [0, 1, 2])
SQUARES = table_format("squares", [-16, -4, -1, 0, 1, 4, 16])
ODD = table_format("odd", [-16, -1, 3, 12])
POSITIVE = table_format("positive", [2.0**-9, 0.5, 1, 3])
CLOSE = table_format("close", [-1, 0, 1, 1 + 2**-23, 1 + 2**-22, 2])
NF = table_format("nf", [-1.0, -0.52, -0.2844, 0.0, 0.0796, 0.2461, 0.44, 0.723, 1.0])
OWN = code_format("own", [0.0, 1.0, 4.0, math.nan], ties="up", boundaries=[-0.5, 0.1, 1.1, 5])
ALL = [E4M3, E7M0, FLAT, WIDE, NATURAL, SQUARES, ODD, POSITIVE, CLOSE, NF, OWN]
NAMES = ["E0M7", "E3M4", "FP16", "BF16", "posit8_2", "INT4", "TERNARY", "BINARY", "binary8p3se"]


@pytest.mark.parametrize("name", ["E7M0", "E5M0", "E2M0", "E8M0"])
def test_powers_of_two_round_as_the_format_that_states_it(name):
    """ExM0 under log-nearest is ExM0-by-log: in the middle, beside zero, beyond the largest."""
    fmt, stated = get_format(name), get_format(f"{name}-by-log")
    for dtype in (torch.float32, torch.float64):
        x = torch.cat([edges(fmt, dtype), edges(stated, dtype), random_floats(3000).to(dtype)])
        wanted = reference(x, stated)
        assert_same(reference(x, fmt, "log-nearest"), wanted, x)
        for way in PATHS:
            with path(way):
                assert_same(round_to_grid(x, stated), wanted, x)
                assert_same(round_to_grid(x, fmt, Rule("log-nearest")), wanted, x)


@pytest.mark.parametrize("fmt", ALL, ids=str)
def test_tensors_round_as_the_reference(fmt):
    """Both paths, at every mean and beside it, for random bits; float64 is rounded once."""
    assert_rounds(torch.cat([edges(fmt), random_floats(500)]), fmt, "log-nearest")
    x = edges(fmt, torch.float64)
    assert_same(round_to_grid(x, fmt, Rule("log-nearest")), reference(x, fmt, "log-nearest"), x)


@pytest.mark.parametrize("name", NAMES)
def test_installed_formats_round_as_the_reference(name):
    fmt = get_format(name)
    assert_rounds(torch.cat([edges(fmt, most=200), random_floats(300)]), fmt, "log-nearest")
    x = edges(fmt, torch.float64, most=100)
    assert_same(round_to_grid(x, fmt, Rule("log-nearest")), reference(x, fmt, "log-nearest"), x)


def ln(x):
    return Decimal(x.numerator).ln() - Decimal(x.denominator).ln()


@pytest.mark.parametrize("fmt", [E4M3, FLAT, NF, SQUARES, POSITIVE], ids=str)
def test_the_nearest_logarithm(fmt):
    """By 60 decimals: of the values of a number's sign none has a nearer logarithm."""
    positive = torch.tensor([v for v in fmt.values if v > 0], dtype=torch.float64)
    low, high = positive[0].item(), positive[-1].item()
    x = edges(fmt, torch.float64, most=100)
    x = x[(x >= low) & (x <= high)]
    got = round_to_grid(x, fmt, Rule("log-nearest")).tolist()
    with localcontext() as context:
        context.prec = 60
        logs = {v: ln(Fraction(v)) for v in positive.tolist()}
        for number, result in zip(x.tolist(), got, strict=True):
            exact = ln(Fraction(number))
            nearest = min(abs(log - exact) for log in logs.values())
            assert abs(logs[result] - exact) <= nearest + Decimal("1e-50")


@pytest.mark.parametrize(
    ("fmt", "above", "wanted"),
    [
        (SQUARES, 6, 64),  # 4 and 16
        (SQUARES, 7, 16 * 28),  # the grid would go on to 28
        (SQUARES, 0, -16 * 28),
        (SQUARES, 4, Fraction(1, 4)),  # 1 and 1/4, where the ratio of 1 and 4 leads
        (SQUARES, 3, Fraction(-1, 4)),
        (NATURAL, 0, Fraction(-1, 2)),  # below 0 it would go on to -1, and nothing lies after
        (NATURAL, 1, Fraction(1, 2)),
        (ODD, 2, 0),
        (get_format("TERNARY"), 2, Fraction(1, 2)),
        (get_format("E0M7"), 128, Fraction(1, 2) / 128**2),
        (FLAT, len(FLAT.values) // 2 + 1, Fraction(FLAT.smallest) ** 2 / Fraction(5, 4)),
        (get_format("E8M0"), 0, Fraction(1, 2**255)),
    ],
    ids=str,
)
def test_boundaries_by_hand(fmt, above, wanted):
    """The squares of the points where the side changes, with their signs."""
    assert log_boundary(fmt, above) == wanted


def test_ties_follow_the_format():
    """A mean that is a number goes by the rule for ties; at -0 and 0 the smaller magnitude wins."""
    x = torch.tensor([2.0, -2.0, 8.0, -8.0, 0.5, -0.5])
    wanted = {
        "even": [4.0, -4.0, 4.0, -4.0, 0.0, -0.0],
        "up": [4.0, -4.0, 16.0, -16.0, 1.0, -1.0],
        "down": [1.0, -1.0, 4.0, -4.0, 0.0, -0.0],
    }
    for ties, rounded in wanted.items():
        fmt = code_format(ties, SQUARES.values, ties=ties)
        for way in PATHS:
            with path(way):
                got = round_to_grid(x, fmt, Rule("log-nearest"))
            assert_same(got, torch.tensor(rounded))
    zeros = torch.tensor([0.0, -0.0])
    for fmt, value in ((ODD, -1.0), (POSITIVE, 2.0**-9), (get_format("BINARY"), 1.0)):
        for way in PATHS:
            with path(way):
                got = round_to_grid(zeros, fmt, Rule("log-nearest", "raise"))
            assert got.tolist() == [value, value]


def test_overflow_begins_at_the_mean_with_what_would_come():
    """In E4M3 480: the geometric mean of 448 and 480 lies below 464, which is a tie to nearest."""
    point = math.sqrt(448 * 480)
    x = torch.tensor([math.nextafter(point, 0), math.nextafter(point, 500)], dtype=torch.float64)
    for given in (x, -x, torch.tensor([463.72, 463.73])):
        got = round_to_grid(given, E4M3, Rule("log-nearest", "nan"))
        assert torch.isnan(got).tolist() == [False, True]
    with pytest.raises(BadInput, match=r"1 value\(s\) overflow"):
        round_to_grid(torch.tensor([463.0, 464.0]), E4M3, Rule("log-nearest", "raise"))


def test_values_stay_where_float32_moves_them_past_the_mean():
    """1 + 2^-24 and a bit becomes 1 + 2^-23 in float32, which lies above the mean with the next."""
    low, high = 1 + 2.0**-24 + 2.0**-52, 1 + 3 * 2.0**-24 + 2.0**-52
    fmt = table_format("moved", [0, low, high, 2])
    assert math.sqrt(Fraction(low) * Fraction(high)) <= 1 + 2.0**-23
    x = torch.tensor(fmt.values)
    for way in PATHS:
        with path(way):
            assert_same(round_to_grid(x, fmt, Rule("log-nearest")), x)


@pytest.mark.parametrize("name", ["BF16", "FP16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_thresholds_are_exact(name, dtype):
    """The smallest number whose square passes that of the mean, in thousands of gaps."""
    fmt = get_format(name)
    points = torch.tensor(thresholds(fmt, "log-nearest", dtype), dtype=dtype)
    before = torch.nextafter(points, torch.full_like(points, -torch.inf))
    assert (points.diff() > 0).all()
    middle = len(fmt.values) // 2
    for i in (0, *range(1, len(fmt.values), 37), middle, middle + 1, len(fmt.values)):
        square = log_boundary(fmt, i)
        at, below = (Fraction(p[i].item()) for p in (points, before))
        assert below * abs(below) < square <= at * abs(at)


@pytest.mark.parametrize("name", ["E4M3", "E0M7", "E7M0"])
def test_every_bfloat16_in_both_paths(name):
    """Scaled, and multiplied back; bit-equal."""
    fmt = get_format(name)
    s = torch.tensor(0.3)
    results = []
    for way in PATHS:
        with path(way):
            results.append(fake_round(all_bfloat16(), fmt, Rule("log-nearest"), r=1 / s, s=s))
    assert_same(*(r.float() for r in results))
