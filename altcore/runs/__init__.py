"""The run directory: writing, reading back, provenance and checkpoints.

Uses config, recipes and formats.
"""

from altcore.runs.checkpoint import (
    load_checkpoint,
    load_newest,
    point_to,
    prune_checkpoints,
    save_checkpoint,
)
from altcore.runs.record import (
    EVENTS,
    METRICS,
    TIMINGS,
    Recorder,
    RunDirectory,
    environment,
    find_run,
    list_runs,
    read_lines,
    recipe_label,
    summarize,
    summary_of,
    to_json,
    write_configuration,
)

__all__ = [
    "EVENTS",
    "METRICS",
    "TIMINGS",
    "Recorder",
    "RunDirectory",
    "environment",
    "find_run",
    "list_runs",
    "load_checkpoint",
    "load_newest",
    "point_to",
    "prune_checkpoints",
    "read_lines",
    "recipe_label",
    "save_checkpoint",
    "summarize",
    "summary_of",
    "to_json",
    "write_configuration",
]
