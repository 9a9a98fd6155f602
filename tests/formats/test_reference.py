"""The scalar oracle: everything else is tested against it, so it is tested by hand and by law."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from altcore.errors import BadInput
from altcore.formats import ROUNDINGS, float_format, round_scalar, table_format

E4M3 = float_format("E4M3", 4, 3, specials="fn")
E5M2 = float_format("E5M2", 5, 2, specials="ieee")
E7M0 = float_format("E7M0", 7, 0)
FLUSHING = float_format("E1M6-normal", 1, 6, subnormals=False)
ODD = table_format("odd", [-3, -1, 1, 3])
POSITIVE = table_format("positive", [1, 2, 4])


@pytest.mark.parametrize(
    ("fmt", "x", "wanted"),
    [
        (E4M3, 464.0, 448.0),  # the tie above the largest value goes to its even code
        (E4M3, 17.0, 16.0),
        (E4M3, 19.0, 20.0),
        (E4M3, 2**-10, 0.0),
        (E4M3, 3 * 2**-10, 2**-8),
        (E7M0, 3.0, 2.0),  # 2.0 has the even exponent code
        (E7M0, 6.0, 8.0),
        (E7M0, 2.0**-63, 0.0),
        (E7M0, 1.0001 * 2.0**-63, 2.0**-62),
        (FLUSHING, 1.0, 0.0),  # both ends of the gap have even codes
        (FLUSHING, 1.01, 2.0),
        (ODD, 2.0, 1.0),
        (ODD, -2.0, -1.0),
        (ODD, 0.0, 1.0),
        (ODD, 4.0, 3.0),
        (POSITIVE, 3.0, 4.0),  # positions count from 1: 2 is odd, 4 even
        (POSITIVE, -7.0, 1.0),
    ],
)
def test_nearest_by_hand(fmt, x, wanted):
    """Ties go to the even code, in a table to the even position counted from zero."""
    assert round_scalar(x, fmt) == wanted


def test_overflow_means_that_rounding_passed_the_largest_value():
    """464 stays, the next number does not; each rule gives its own result."""
    above = math.nextafter(464.0, 500.0)
    assert round_scalar(464.0, E4M3, overflow="nan") == 448
    assert math.isnan(round_scalar(above, E4M3, overflow="nan"))
    assert round_scalar(above, E4M3) == 448
    with pytest.raises(BadInput, match="overflows format E4M3"):
        round_scalar(above, E4M3, overflow="raise")
    assert round_scalar(-61440.0, E5M2, overflow="inf") == -math.inf
    assert round_scalar(61439.0, E5M2, overflow="inf") == 57344
    assert round_scalar(479.0, E4M3, "to-zero", "nan") == 448
    assert math.isnan(round_scalar(480.0, E4M3, "to-zero", "nan"))


@pytest.mark.parametrize("rule", ["inf", "nan"])
def test_rules_without_a_code(rule):
    """An infinity or NaN that the format does not have is refused, not replaced."""
    with pytest.raises(BadInput, match=rule):
        round_scalar(1e300, E7M0, overflow=rule)


def test_special_inputs():
    """NaN stays NaN everywhere; infinities overflow; zeros keep their sign."""
    assert math.isnan(round_scalar(math.nan, E7M0))
    assert round_scalar(-math.inf, E4M3) == -448
    assert math.copysign(1, round_scalar(-0.0, E4M3)) == -1
    assert math.copysign(1, round_scalar(-1e-30, E4M3)) == -1
    assert math.copysign(1, round_scalar(-9.0, table_format("natural", [0, 1, 2]))) == -1


def test_bad_rules_are_named():
    with pytest.raises(BadInput, match="half-up"):
        round_scalar(1.0, E4M3, "half-up")
    with pytest.raises(BadInput, match="wrap"):
        round_scalar(1.0, E4M3, overflow="wrap")
    with pytest.raises(BadInput, match="uniform"):
        round_scalar(1.01, E4M3, "stochastic")


floats = st.builds(
    lambda e, m, s, n: float_format("random", e, m, specials=s, subnormals=n or e == 0),
    st.integers(2, 6),
    st.integers(0, 4),
    st.sampled_from(["none", "ieee", "fn", "fnuz"]),
    st.booleans(),
)
tables = st.lists(st.integers(-40, 40), min_size=2, max_size=12, unique=True).filter(
    lambda v: max(v) > 0
)
formats = floats | tables.map(lambda v: table_format("random", sorted(x / 8 for x in v)))
numbers = st.fractions(-100, 100) | st.floats(-100, 100).map(Fraction)


@given(formats, numbers, st.sampled_from(ROUNDINGS), st.fractions(0, 1).filter(lambda u: u < 1))
def test_definitions(fmt, x, rounding, uniform):
    """The result is a value; it lies on the right side, and near ones are nearest."""
    result = round_scalar(x, fmt, rounding, uniform=uniform)
    assert result in fmt.values
    low, high = Fraction(fmt.values[0]), Fraction(fmt.values[-1])
    if not low <= x <= high:
        return
    if rounding.startswith("nearest"):
        assert abs(Fraction(result) - x) == min(abs(Fraction(v) - x) for v in fmt.values)
    elif rounding == "up":
        assert result == min(v for v in fmt.values if v >= x)
    elif rounding == "down":
        assert result == max(v for v in fmt.values if v <= x)
    elif rounding == "to-zero" and 0 in fmt.values:
        assert result == max((v for v in fmt.values if abs(v) <= abs(x) and v * x >= 0), key=abs)
    elif (
        rounding == "log-nearest" and x and any(v * x > 0 and abs(v) <= abs(x) for v in fmt.values)
    ):
        ratios = [max(v / x, x / v) for v in map(Fraction, fmt.values) if v * x > 0]
        assert max(result / x, x / Fraction(result)) == min(ratios)
    else:
        neighbours = (max(v for v in fmt.values if v <= x), min(v for v in fmt.values if v >= x))
        assert result in neighbours


@given(floats, numbers, st.sampled_from(["nearest-even", "nearest-away", "to-zero", "log-nearest"]))
def test_odd(fmt, x, rounding):
    """Q(-x) is -Q(x)."""
    assert round_scalar(-x, fmt, rounding) == -round_scalar(x, fmt, rounding)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6, unique=True), st.booleans(), numbers)
def test_symmetric_tables_are_odd(sizes, zero, x):
    """With and without zero, ties included."""
    values = sorted({*sizes, *(-s for s in sizes)} | ({0} if zero else set()))
    fmt = table_format("symmetric", values)
    if x or zero:
        assert round_scalar(-x, fmt) == -round_scalar(x, fmt)


@given(formats, st.data())
def test_stochastic_probability(fmt, data):
    """Away from zero exactly for the uniform numbers below the fraction of the interval."""
    i = data.draw(st.integers(0, len(fmt.values) - 2))
    low, high = Fraction(fmt.values[i]), Fraction(fmt.values[i + 1])
    share = data.draw(st.fractions(0, 1, max_denominator=64))
    if low < 0 < high:
        return
    x = low + share * (high - low)
    fraction, outer = (share, high) if low >= 0 else (1 - share, low)
    for uniform in (Fraction(0), fraction / 2, fraction, Fraction(63, 64)):
        moved = round_scalar(x, fmt, "stochastic", uniform=uniform) == outer
        assert moved == (uniform < fraction or x == outer)


def test_single_saturates_to_float32():
    """As tensors of float32 do, whose grid does not hold the largest value itself."""
    fmt = table_format("past one", [-1 / 3, 0, 1.0000000001])
    assert round_scalar(1e9, fmt, single=True) == round_scalar(math.inf, fmt, single=True) == 1.0
    assert round_scalar(-math.inf, fmt, single=True) == fmt.singles[0] != fmt.values[0]
    assert round_scalar(1e9, fmt) == 1.0000000001
