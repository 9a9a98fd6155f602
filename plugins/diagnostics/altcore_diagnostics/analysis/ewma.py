"""Exponentially weighted mean and variance of a series, one value at a time."""

from __future__ import annotations

from collections.abc import Sequence

ALPHA = 0.1
"""Weight of the newest value: a value counts half after 6.6 further ones."""


def ewma(
    x: float, mean: float | None, variance: float = 0.0, alpha: float = ALPHA
) -> tuple[float, float]:
    """Return mean and variance after ``x``; before the first value the mean is None.

    mean' = αx + (1 − α)·mean and variance' = α(x − mean)² + (1 − α)·variance, with the mean before
    ``x`` in both. They begin at the first value and at 0.

    >>> ewma(3.0, None), ewma(4.0, 3.0, alpha=0.5)
    ((3.0, 0.0), (3.5, 0.5))
    """
    if mean is None:
        return x, 0.0
    error = x - mean
    return alpha * x + (1 - alpha) * mean, alpha * error**2 + (1 - alpha) * variance


def residuals(
    series: Sequence[float], mean: float | None = None, alpha: float = ALPHA
) -> tuple[list[float], float | None]:
    """Return how far each value lies from the weighted mean of those before it, and the last mean.

    The first value of all has none before it, and no residual.

    >>> residuals([3.0, 4.0], alpha=0.5)
    ([1.0], 3.5)
    """
    errors = []
    for x in series:
        if mean is not None:
            errors.append(x - mean)
        mean, _ = ewma(x, mean, alpha=alpha)
    return errors, mean
