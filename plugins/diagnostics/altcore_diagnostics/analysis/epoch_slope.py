"""How fast the loss falls: a straight line through its means over epochs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np


def finite_mean(losses: Sequence[float]) -> float:
    """Return the mean of the finite losses; NaN if there is none.

    >>> finite_mean([1.0, 3.0, float("inf")])
    2.0
    """
    finite = [loss for loss in losses if math.isfinite(loss)]
    return math.fsum(finite) / len(finite) if finite else math.nan


def epoch_means(losses: Mapping[int, Sequence[float]]) -> dict[int, float]:
    """Return the mean of each epoch's batch losses that are finite; NaN of an epoch without one."""
    return {epoch: finite_mean(own) for epoch, own in losses.items()}


def loss_slope(means: Mapping[int, float], start: int, end: int | None = None) -> float | None:
    """Return the slope, per epoch, of the least-squares line through the means of epochs.

    ``means`` has them by the number of the epoch, from 1. The line is through those from ``start``
    on, and before ``end``. Epochs whose mean is missing or not finite are left out; of fewer than
    two there is no slope.

    >>> loss_slope({1: 9.0, 5: 2.0, 6: 1.5, 7: 1.0}, 5, 7)
    -0.5
    """
    epochs = sorted(
        epoch
        for epoch, mean in means.items()
        if start <= epoch and (end is None or epoch < end) and math.isfinite(mean)
    )
    if len(epochs) < 2:
        return None
    x = np.array(epochs, dtype=float)
    y = np.array([means[epoch] for epoch in epochs])
    x -= x.mean()
    return float(x @ (y - y.mean()) / (x @ x))


def knee_epoch(means: Mapping[int, float], threshold: float = 1.0) -> int | None:
    """Return the first epoch whose mean is at most ``threshold``, None if there is none.

    With it the burn-in is over; its mean is the burn-in loss.
    """
    under: Iterable[int] = (epoch for epoch, mean in means.items() if mean <= threshold)
    return min(under, default=None)
