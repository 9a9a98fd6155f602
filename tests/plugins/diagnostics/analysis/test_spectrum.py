"""The spectrum, against scipy's periodogram, and of signals that are known."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal

from altcore_diagnostics.analysis.spectrum import psd_tail, spectrum, total_power

SERIES = st.lists(st.floats(-100, 100), min_size=4, max_size=64)


def wave(frequency, size=40, height=1.0):
    return height * np.cos(2 * np.pi * frequency * np.arange(size))


@settings(max_examples=30)
@given(SERIES)
def test_against_scipy(x):
    frequencies, power = spectrum(x)
    other = signal.periodogram(x, window="hann", detrend="constant")
    np.testing.assert_allclose(frequencies, other[0], atol=1e-15)
    np.testing.assert_allclose(power, other[1], rtol=1e-6, atol=1e-6)
    # One segment of Welch's method is the same.
    np.testing.assert_allclose(
        power, signal.welch(np.array(x), nperseg=len(x))[1], rtol=1e-6, atol=1e-6
    )


@settings(max_examples=30)
@given(SERIES)
def test_total_power_is_that_under_the_window(x):
    """Parseval's theorem: the integral is the weighted mean square about the mean."""
    w = signal.get_window("hann", len(x))
    expected = ((w * (np.array(x) - np.mean(x))) ** 2).sum() / (w**2).sum()
    assert total_power(x) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(max_examples=30)
@given(SERIES, st.floats(-1e3, 1e3))
def test_a_constant_changes_nothing(x, constant):
    shifted = np.array(x) + constant
    assert total_power(shifted) == pytest.approx(total_power(x), rel=1e-6, abs=1e-6)


def test_the_power_of_a_wave():
    """Half the square of its height."""
    assert total_power(wave(0.2, height=3.0)) == pytest.approx(4.5)


@pytest.mark.parametrize(
    ("size", "middle"), [(4, 0.5), (5, 1.0), (6, 1.7), (8, 0.75), (12, 1.3), (24, 0.85), (100, 1)]
)
def test_the_tail_of_white_noise_of_few_samples(size, middle):
    """Its medians, as docs/monitors.md has them."""
    draws = np.random.default_rng(0).normal(size=(1500, size))
    assert np.median([psd_tail(x) for x in draws]) == pytest.approx(middle, rel=0.1)


def test_a_band_without_a_frequency_has_no_power():
    """Then there is no ratio, rather than 0 or one to 1e-10."""
    x = [1.0, 2.0, 1.5, 3.0, 0.0]  # 0, 0.2 and 0.4
    assert math.isnan(psd_tail(x, low=(0.05, 0.15)))
    assert math.isnan(psd_tail(x, high=(0.45, 0.5)))


def test_the_tail_of_a_wave():
    """A slow wave has none, a fast one nothing else, a trend neither."""
    assert psd_tail(wave(0.2)) < 1e-12
    assert psd_tail(wave(0.4)) > 1e9
    slow = wave(0.025) * 100
    assert psd_tail(slow + wave(0.2) + wave(0.4)) == pytest.approx(1, rel=1e-6)


def test_the_bounds_are_inclusive():
    """0.1 and 0.5 belong to their bands, and 0.3 to both, whatever floats make of 3/10."""
    x = np.random.default_rng(0).normal(size=10)
    _, power = spectrum(x)
    high, low = power[3:6].sum(), power[1:4].sum()
    assert psd_tail(x) == pytest.approx(high / (low + 1e-10))
    assert psd_tail(x, low=(0.1, 0.1), high=(0.5, 0.5)) == pytest.approx(
        power[5] / (power[1] + 1e-10)
    )


def test_white_noise_is_flat():
    x = np.random.default_rng(0).normal(size=20_000)
    assert psd_tail(x) == pytest.approx(1, abs=0.05)
    assert total_power(x) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("size", range(6))
def test_too_few_samples(size):
    x = np.arange(size, dtype=float)
    assert math.isnan(psd_tail(x)) == (size < 4)
    assert math.isnan(total_power(x)) == (size < 4)


def test_of_a_constant_series():
    """Nothing over 1e-10."""
    assert (psd_tail([2.0] * 8), total_power([2.0] * 8)) == (0, 0)


def test_what_is_not_finite_shows():
    assert math.isnan(psd_tail([1.0, math.nan, 2.0, 3.0, 4.0]))


def test_without_power_at_low_frequencies():
    """The ratio is to 1e-10 then, and not infinite."""
    x = 1e-4 * (-1.0) ** np.arange(40)
    f, power = spectrum(x)
    assert power[(f >= 0.1) & (f <= 0.3)].sum() < 1e-20
    assert psd_tail(x) == pytest.approx(power[f >= 0.3].sum() / 1e-10)
