"""The power spectrum of a short series, and the share of it that is fast."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEAST = 4
"""Samples without which a spectrum says nothing."""
LOW, HIGH = (0.1, 0.3), (0.3, 0.5)
"""Bands in cycles a sample, both ends included; below them lies the trend."""
TINY = 1e-10


def spectrum(x: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return frequencies in 0..0.5 cycles a sample, and the one-sided power density at each.

    The mean is removed, and the rest is multiplied by a (periodic) Hann window: as
    ``scipy.signal.periodogram(x, window="hann")``. The integral of the density is the variance, as
    far as the window sees it.
    """
    x = np.asarray(x, dtype=float)
    n = len(x)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n)
    power = np.abs(np.fft.rfft((x - x.mean()) * window)) ** 2 / (window @ window)
    power[1 : (n + 1) // 2] *= 2  # the negative frequencies; 0 and 1/2 have none
    # Not numpy's rfftfreq, which multiplies: a frequency of 3/10 has to be 0.3.
    return np.arange(n // 2 + 1) / n, power


def psd_tail(
    x: ArrayLike, low: tuple[float, float] = LOW, high: tuple[float, float] = HIGH
) -> float:
    """Return the power of the band ``high`` over that of ``low`` (plus 1e-10).

    A frequency at the end of a band is in it, so a common end is in both. NaN of fewer than four
    samples, and if no frequency is in a band. Much white noise gives the ratio of the widths.
    """
    if np.size(x) < LEAST:
        return math.nan
    f, power = spectrum(x)

    def band(ends: tuple[float, float]) -> float:
        inside = power[(f >= ends[0]) & (f <= ends[1])]
        return float(inside.sum()) if inside.size else math.nan

    return band(high) / (band(low) + TINY)


def total_power(x: ArrayLike) -> float:
    """Return the integral of the spectrum, in the square of x's unit; NaN of fewer than four."""
    if np.size(x) < LEAST:
        return math.nan
    return float(spectrum(x)[1].sum() / np.size(x))
