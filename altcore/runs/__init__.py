"""The run directory: writing, reading back, provenance and checkpoints.

Uses config, recipes and formats.
"""

from altcore.builtin_types import to_json
from altcore.runs.checkpoint import (
    load_checkpoint,
    load_newest,
    point_to,
    prune_checkpoints,
    save_checkpoint,
)
from altcore.runs.directory import (
    EVENTS,
    METRICS,
    TIMINGS,
    RunDirectory,
    as_name,
    recipe_label,
    write_configuration,
)
from altcore.runs.json_lines import read_lines
from altcore.runs.provenance import environment
from altcore.runs.reading import find_run, list_runs, summarize, summary_of

__all__ = [
    "EVENTS",
    "METRICS",
    "TIMINGS",
    "RunDirectory",
    "as_name",
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
