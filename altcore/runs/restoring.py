"""Writing what a run lost anew, as a checkpoint of its own has it: config, environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from altcore.config import TrainConfig, check_name
from altcore.errors import BadInput
from altcore.run_files import CONFIG, ENVIRONMENT, SUMMARY
from altcore.runs.directory import RunDirectory, write_configuration
from altcore.runs.environment_file import check_environment
from altcore.runs.identity_changes import Change
from altcore.runs.own_checkpoint import restorable
from altcore.runs.reading import no_run, read_configuration
from altcore.runs.summary import read_summary, records_in


def restore(name: str, runs_dir: str) -> tuple[list[Path], Path]:
    """Write what a run lost anew; returns the paths of these files, and that of the checkpoint.

    That is always config.yaml, and environment.json if it is not as it was. What was there is kept
    as FILE.damaged.

    Raises:
        BadInput: if there is no such run, no checkpoint has it, or another process is at the run.
    """
    path = Path(runs_dir) / check_name(name, "run")
    if not path.exists():
        raise no_run(name, runs_dir)
    check_environment(path)
    checkpoint, manifest = restorable(path)
    if checkpoint is None:
        raise BadInput(f"there is no checkpoint in {path} that holds the configuration")
    config = TrainConfig.from_plain(manifest["identity"]["configuration"])
    directory = RunDirectory.open(path)
    try:
        directory.keep_damaged(CONFIG)
        write_configuration(directory, config)
        is_other = bring_back_environment(directory, manifest)
        if (records := records_in(path)) and (summary := read_summary(path)):
            # The restored files are the record from now on; they need not be the same bytes.
            now = {**records, **directory.held_records()}
            directory.write_json(SUMMARY, summary.to_file(now))
    finally:
        directory.close()
    return [path / file for file in (CONFIG, ENVIRONMENT)[: 1 + is_other]], checkpoint


def is_edited(run: Path, changes: Sequence[Change]) -> bool:
    """Whether a run's config.yaml has one of these changes, and not the command line alone."""
    written = read_configuration(run)
    for change in (c for c in changes if c.kind == "configuration"):
        owner, _, key = change.what.rpartition(".")
        held = (written.get("settings") or {}).get(owner) if owner else written
        # What a cut file lost counts: a run writes every key that it has.
        if (held.get(key) if isinstance(held, Mapping) else None) != change.before:
            return True
    return False


def bring_back_environment(directory: RunDirectory, manifest: Mapping[str, Any]) -> bool:
    """Write environment.json as a manifest has it, if it is not; returns whether it was written."""
    if directory.environment == manifest["environment"]:
        return False
    directory.keep_damaged(ENVIRONMENT)
    directory.write_json(ENVIRONMENT, manifest["environment"])
    return True
