"""The schedule: the learning rate of a step, and intervals."""

from __future__ import annotations

import math

from altcore.config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the schedule's rate at ``step`` (from 1): linear warm-up, then half a cosine."""
    peak, low = config.learning_rate, config.learning_rate * config.min_lr_ratio
    if step <= config.warmup_steps:
        return peak * step / (config.warmup_steps + 1)
    share = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    return low + 0.5 * (1 + math.cos(math.pi * min(1.0, share))) * (peak - low)


def is_due(interval: int, step: int) -> bool:
    """Whether an interval falls on the step; 0 is never."""
    return interval > 0 and step % interval == 0
