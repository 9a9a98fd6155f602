"""The schedule: the learning rate of a step, and intervals."""

from __future__ import annotations

import math
from fractions import Fraction

from altcore.config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the schedule's rate at ``step``, from 1; docs/configuration.md has the formulas."""
    peak, low = config.learning_rate, config.learning_rate * config.min_lr_ratio
    warmup, last = config.warmup_steps, config.max_steps
    if config.schedule == "cosine-full":
        rate = low + _half_cosine((step - 1) / last) * (peak - low)
        return rate * min(1.0, step / (warmup + 1))
    if step <= warmup:
        return peak * step / (warmup + 1)
    start = warmup
    if config.schedule == "wsd":
        start = max(warmup, last - round(config.decay_share * last))
    if config.schedule == "constant" or step <= start:
        return peak
    share = min(1.0, (step - start) / max(1, last - start))
    left = _half_cosine(share) if config.schedule == "cosine" else 1 - share
    return low + left * (peak - low)


def _half_cosine(share: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * share))


def is_due(interval: int | Fraction, step: int) -> bool:
    """Whether the step is the nearest one to a multiple of an interval; 0 is never.

    Of two that are as near it is the later one.
    """
    if isinstance(interval, int):
        return interval > 0 and step % interval == 0
    half = Fraction(1, 2)
    nearest = math.floor(step / interval + half)
    return nearest > 0 and math.floor(nearest * interval + half) == step
