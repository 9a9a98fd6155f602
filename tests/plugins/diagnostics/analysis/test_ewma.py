"""The exponentially weighted mean and variance, against pandas and a calculation by hand."""

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from altcore_diagnostics.analysis.ewma import ewma, residuals

SERIES = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30)
ALPHA = st.floats(0.01, 0.99)


def followed(series, alpha):
    mean, variance = None, 0.0
    for x in series:
        mean, variance = ewma(x, mean, variance, alpha)
    return mean, variance


def test_by_hand():
    """1, 2, 4 at the default of 0.1: means 1, 1.1, 1.39; errors 1 and 2.9."""
    assert followed([1.0, 2.0, 4.0], 0.1) == pytest.approx((1.39, 0.1 * 2.9**2 + 0.9 * 0.1))
    assert ewma(2.0, 1.0) == pytest.approx((1.1, 0.1))


@settings(max_examples=30)
@given(SERIES, ALPHA)
def test_against_pandas(series, alpha):
    """The variance is the weighted mean of squared errors, each from the mean before it."""
    means = pd.Series(series).ewm(alpha=alpha, adjust=False).mean()
    errors = (pd.Series(series) - means.shift()).fillna(0.0)
    variance = (errors**2).ewm(alpha=alpha, adjust=False).mean().iloc[-1]
    assert followed(series, alpha) == pytest.approx((means.iloc[-1], variance), rel=1e-9, abs=1e-9)
    own, mean = residuals(series, alpha=alpha)
    assert own == pytest.approx(list(errors[1:]), rel=1e-9, abs=1e-9)
    assert mean == pytest.approx(means.iloc[-1], rel=1e-9, abs=1e-9)


@settings(max_examples=30)
@given(SERIES, SERIES, ALPHA)
def test_residuals_go_on_from_a_mean(first, second, alpha):
    whole, end = residuals(first + second, alpha=alpha)
    a, mean = residuals(first, alpha=alpha)
    b, last = residuals(second, mean, alpha)
    assert (a + b, last) == (whole, end)


def test_of_nothing():
    assert residuals([]) == ([], None)
    assert residuals([], 2.0) == ([], 2.0)
