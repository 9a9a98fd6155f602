"""Whether the files that a run wrote at its beginning are as its newest checkpoint has them.

A run that ended has their digests in summary.json, which do not say what was changed. One that was
killed has none, and a resume may have changed its config.yaml since: so keys are compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from altcore.builtin_types import to_json
from altcore.errors import BadInput
from altcore.run_files import CONFIG, ENVIRONMENT, EVENTS
from altcore.runs.directory_lock import is_being_written
from altcore.runs.files_in_settings import by_owner
from altcore.runs.identity_changes import MOST_TOLD, NAMES, Change
from altcore.runs.json_files import read_json
from altcore.runs.json_lines import read_lines
from altcore.runs.own_checkpoint import newest_manifest
from altcore.yaml_files import read_mapping

FREE = (
    *("changes", "original", "settings", "device", "strict", "check_observers", "hook_timeout"),
    *("format_digests", "format_origins"),
)
"""Keys of the configuration that a resume may change without a word, and what is compared apart."""


def edited(run: Path) -> dict[str, str]:
    """Return what is said of config.yaml and environment.json if the run did not write them so.

    A file that is missing, or cannot be read, is named by whoever reads it. Nothing is said while a
    process writes the run: it may be about to go on with other keys, and puts back what was edited.
    """
    checkpoint, manifest = newest_manifest(run)
    if checkpoint is None or is_being_written(run):
        return {}
    by, found = f"was changed: {checkpoint.name} has it otherwise", {}
    hint = f"altcore runs restore {run.name} brings it back"
    with suppress(BadInput):
        if changes := _changes(run, checkpoint.name, manifest["identity"].get("configuration")):
            told = "; ".join(map(str, changes[:MOST_TOLD]))
            found[CONFIG] = f"{run / CONFIG} {by}: {told}: {hint}"
    with suppress(BadInput):
        if read_json(run / ENVIRONMENT) not in ({}, manifest["environment"]):
            found[ENVIRONMENT] = f"{run / ENVIRONMENT} {by}: {hint}"
    return found


def _changes(run: Path, checkpoint: str, before: Any) -> list[Change]:
    written = to_json(read_mapping(run / CONFIG, "run"))
    if not isinstance(before, Mapping) or _has_gone_on(run, checkpoint):
        return []
    was = {**before, **by_owner(before.get("settings"))}
    # A run writes every key, and those of its settings that were given.
    now = {
        **{key: written.get(key) for key in before if key not in (*NAMES, *FREE)},
        **by_owner(written.get("settings")),
    }
    return [Change("configuration", k, was.get(k), v) for k, v in now.items() if was.get(k) != v]


def _has_gone_on(run: Path, checkpoint: str) -> bool:
    """Whether the run went on from its newest checkpoint as another one, and wrote that down."""
    resumes = [line for line in read_lines(run / EVENTS) if line["event"] == "resume"]
    last = resumes[-1] if resumes else {}
    changes = last.get("changes")  # a file may hold anything
    told = changes if isinstance(changes, list) else []
    kinds = {change.get("kind") for change in told if isinstance(change, Mapping)}
    return last.get("checkpoint") == checkpoint and bool(kinds - {"platform"})
