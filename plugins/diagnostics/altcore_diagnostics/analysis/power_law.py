"""A power law y = a·x^b, fitted as a straight line through the logarithms."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class PowerLaw(NamedTuple):
    """A fit, and the share of the variance of log y that it explains."""

    amplitude: float
    exponent: float
    r_squared: float


UNFITTED = PowerLaw(math.nan, math.nan, 0.0)


def power_law(x: ArrayLike, y: ArrayLike) -> PowerLaw:
    """Fit y = a·x^b by least squares of log y over log x.

    Only pairs count in which both are positive and finite. Fewer than two, or a single x, cannot be
    fitted: a and b are NaN, and R² is 0. R² is 0 as well if all y are the same.

    >>> [round(part, 6) for part in power_law([1, 2, 4], [8, 4, 2])]
    [8.0, -1.0, 1.0]
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    counts = (x > 0) & (y > 0) & (x < math.inf) & (y < math.inf)
    u, v = np.log(x[counts]), np.log(y[counts])
    if len(u) < 2 or u.min() == u.max():
        return UNFITTED
    du, dv = u - u.mean(), v - v.mean()
    exponent = float(du @ dv / (du @ du))
    amplitude = float(np.exp(v.mean() - exponent * u.mean()))
    if v.min() == v.max():
        return PowerLaw(amplitude, 0.0, 0.0)
    rest = dv - exponent * du
    return PowerLaw(amplitude, exponent, float(1 - rest @ rest / (dv @ dv)))
