"""The power law, against scipy's regression of the logarithms."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from altcore_diagnostics.analysis.power_law import UNFITTED, power_law

POSITIVE = st.floats(1e-3, 1e3)
PAIRS = st.lists(st.tuples(POSITIVE, POSITIVE), min_size=2, max_size=30)


@settings(max_examples=30)
@given(st.floats(0.1, 10), st.floats(-3, 3), st.lists(POSITIVE, min_size=2, unique=True))
def test_an_exact_law_is_found(amplitude, exponent, x):
    x = np.array(x)
    assume(np.ptp(np.log(x)) > 1e-3)
    fit = power_law(x, amplitude * x**exponent)
    assert fit[:2] == pytest.approx((amplitude, exponent), rel=1e-6, abs=1e-6)
    assert fit.r_squared == pytest.approx(1, abs=1e-6) or abs(exponent) < 1e-6


@settings(max_examples=30)
@given(PAIRS)
def test_against_scipy(pairs):
    x, y = np.array(pairs).T
    assume(np.ptp(np.log(x)) > 1e-6)
    assume(np.ptp(np.log(y)) > 1e-6)
    other = stats.linregress(np.log(x), np.log(y))
    fit = power_law(x, y)
    assert fit.exponent == pytest.approx(other.slope, rel=1e-6, abs=1e-9)
    assert math.log(fit.amplitude) == pytest.approx(other.intercept, rel=1e-6, abs=1e-6)
    assert fit.r_squared == pytest.approx(other.rvalue**2, abs=1e-9)


@settings(max_examples=30)
@given(PAIRS, st.sampled_from([0.0, -1.0, math.nan, math.inf, -math.inf]), st.booleans())
def test_other_pairs_do_not_count(pairs, odd, is_x):
    """Neither where y is not positive and finite, nor where x is not."""
    x, y = map(list, np.array(pairs).T)
    with_odd = power_law([*x, odd if is_x else 2.0], [*y, 2.0 if is_x else odd])
    assert repr(with_odd) == repr(power_law(x, y))


@pytest.mark.parametrize(
    ("x", "y"), [([], []), ([1.0], [2.0]), ([0.0, 1.0], [1.0, 2.0]), ([3.0, 3.0], [1.0, 2.0])]
)
def test_what_cannot_be_fitted(x, y):
    """Fewer than two pairs, or a single x."""
    assert repr(power_law(x, y)) == repr(UNFITTED)
    assert math.isnan(UNFITTED.amplitude)
    assert math.isnan(UNFITTED.exponent)
    assert UNFITTED.r_squared == 0


def test_without_spread_nothing_is_explained():
    assert power_law([1, 2, 3], [0.1, 0.1, 0.1]) == pytest.approx((0.1, 0, 0))
