"""A run's configuration: its keys, where they may come from, the original keys and presets.

Uses formats, recipes and hooks; needs no torch.
"""

from altcore.config.epochs import IN_STEPS, read_interval
from altcore.config.loading import (
    Override,
    active_of,
    full_name,
    in_full,
    load_config,
    load_with_sources,
    merge_sources,
    missing_observers,
)
from altcore.config.original_keys import notices
from altcore.config.record import recorded, sources_in, with_defaults
from altcore.config.saving import save_config
from altcore.config.train_config import (
    LONGEST_NAME,
    TrainConfig,
    as_cost,
    check_is_no_key,
    check_name,
    defaults,
)

__all__ = [
    "IN_STEPS",
    "LONGEST_NAME",
    "Override",
    "TrainConfig",
    "active_of",
    "as_cost",
    "check_is_no_key",
    "check_name",
    "defaults",
    "full_name",
    "in_full",
    "load_config",
    "load_with_sources",
    "merge_sources",
    "missing_observers",
    "notices",
    "read_interval",
    "recorded",
    "save_config",
    "sources_in",
    "with_defaults",
]
