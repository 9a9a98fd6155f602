"""Logarithmic formats, against decimal arithmetic of 60 digits."""

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import pytest
import torch
from format_checks import PATHS, assert_same, edges, path, random_floats, single

from altcore import get_format
from altcore.formats import round_scalar
from altcore.numerics import round_to_grid

SIZES = [(4, 3), (3, 4), (7, 0), (2, 2), (1, 3)]


def logarithms(size):
    """The fixed-point logarithms but the most negative one, times 2**f."""
    half = 1 << (size[0] + size[1] - 1)
    return range(1 - half, half)


def power(step, size):
    """2**(step / 2**f) as an exact fraction of 60 digits, and its float32."""
    with localcontext() as context:
        context.prec = 60
        return Fraction(Decimal(2) ** (Decimal(step) / 2 ** size[1]))


def log2(x):
    with localcontext() as context:
        context.prec = 60
        return Decimal(abs(x)).ln() / Decimal(2).ln()


def by_log(x, size):
    """The definition: the nearest logarithm; the most negative one means zero."""
    if x == 0 or math.isnan(x):
        return x
    half = 1 << (size[0] + size[1] - 1)
    step = half if math.isinf(x) else int((log2(x) * 2 ** size[1]).to_integral_value())
    step = min(max(step, -half), half - 1)
    value = 0.0 if step == -half else single(float(power(step, size)))
    return math.copysign(value, x)


@pytest.mark.parametrize("rule", ["value", "log"])
@pytest.mark.parametrize("size", SIZES)
def test_codes(size, rule):
    """A code is the sign and the logarithm in two's complement; its most negative is 0 and NaN."""
    fmt = get_format(f"LOG{size[0]}_{size[1]}-by-{rule}")
    width = size[0] + size[1]
    assert fmt.bits == 1 + width
    steps = {step & ((1 << width) - 1): step for step in logarithms(size)}
    for code, value in enumerate(fmt.code_values):
        sign, step = divmod(code, 1 << width)
        if step in steps:
            assert value == (-1) ** sign * single(float(power(steps[step], size)))
        else:
            assert math.isnan(value) if sign else (value == 0 and math.copysign(1, value) > 0)


@pytest.mark.parametrize("size", SIZES)
def test_by_log_takes_the_nearest_logarithm(size):
    """At all values, at midpoints of value and of logarithm, and anywhere; float64 too."""
    fmt = get_format(f"LOG{size[0]}_{size[1]}-by-log")
    for x in (edges(fmt, most=60), random_floats(200), edges(fmt, torch.float64, most=60)):
        wanted = torch.tensor([by_log(v, size) for v in x.tolist()]).to(x.dtype)
        for way in PATHS:
            with path(way):
                assert_same(round_to_grid(x, fmt), wanted, x)


def test_boundaries_by_log_are_geometric_means():
    """Each boundary is the power of two halfway, closer than the decimals here can say."""
    fmt = get_format("LOG4_3-by-log")
    points = [b for b in (*fmt.boundaries, fmt.limits[1]) if b > 0]
    half = 1 << 6
    for step, point in zip(range(-half, half), points, strict=True):
        exact = power(2 * step + 1, (4, 4))
        assert abs(point / exact - 1) < Fraction(1, 10**55)
        assert round_scalar(float(point), fmt) in fmt.values


def test_by_value_takes_the_nearest_value():
    """The same values with the midpoints for boundaries; ties to the even logarithm."""
    fmt = get_format("LOG7_0-by-value")
    assert fmt.values == get_format("LOG7_0-by-log").values
    assert fmt.boundaries[-1] == Fraction(3 * 2**61)
    assert (fmt.beyond[1], fmt.limits[1]) == (2**64, Fraction(3 * 2**62))
    x = torch.tensor([3.0, 6.0, -3.0, 2.9, 2.0**-64, 1.1 * 2.0**-64])
    wanted = [4.0, 4.0, -4.0, 2.0, 0.0, 2.0**-63]
    other = [4.0, 8.0, -4.0, 4.0, 0.0, 0.0]
    for name, rounded in (("LOG7_0-by-value", wanted), ("LOG7_0-by-log", other)):
        for way in PATHS:
            with path(way):
                assert round_to_grid(x, get_format(name)).tolist() == rounded


@pytest.mark.parametrize("name", ["E7M0", "E5M0", "E8M0"])
def test_one_bit_of_precision_by_log(name):
    """ExM0-by-log goes up from the square root of 2, below the smallest value too."""
    fmt = get_format(f"{name}-by-log")
    assert fmt.values == get_format(name).values
    root = math.sqrt(2)
    assert Fraction(root) ** 2 > 2  # irrational, it was rounded up
    sides = [math.nextafter(root, 0), root]
    for power_of_two in [v for v in fmt.values if 0 < v < fmt.max]:
        x = torch.tensor([s * power_of_two for s in sides], dtype=torch.float64)
        wanted = [power_of_two, 2 * power_of_two]
        assert round_to_grid(x, fmt).tolist() == wanted
    if fmt.signed:
        flushed = torch.tensor([fmt.smallest * 0.70, fmt.smallest * 0.71, -fmt.smallest * 0.70])
        assert round_to_grid(flushed, fmt).tolist() == [0.0, fmt.smallest, -0.0]
