"""A run's configuration: its keys, where they may come from, the original keys and presets.

Uses formats, recipes and hooks; needs no torch.
"""

from altcore.config.original_keys import notices
from altcore.config.record import recorded
from altcore.config.train_config import (
    LONGEST_NAME,
    TrainConfig,
    check_name,
    defaults,
    gather,
    load,
    located,
    make,
    missing_observers,
    read_recipe,
)

__all__ = [
    "LONGEST_NAME",
    "TrainConfig",
    "check_name",
    "defaults",
    "gather",
    "load",
    "located",
    "make",
    "missing_observers",
    "notices",
    "read_recipe",
    "recorded",
]
