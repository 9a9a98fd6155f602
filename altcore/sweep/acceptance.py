"""What a run is accepted by: it is the end of its job's run, and its files are written down."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from altcore import durable
from altcore.config import IN_STEPS
from altcore.errors import BadInput, shown
from altcore.runs import (
    CONFIG,
    ENDED,
    ENVIRONMENT,
    METRICS,
    NAMES,
    SUMMARY,
    contents,
    read_configuration,
    read_json,
)

FILES = (SUMMARY, METRICS, CONFIG, ENVIRONMENT)
"""What a sweep reads of an accepted run."""
RECORDED = (*NAMES, "changes", "format_digests", "format_origins", "steps_per_epoch")
"""Keys of a run's config.yaml that its job does not decide."""
JOB_DIGEST = "job"
"""The job's own digest, among those of the files."""


def digests_of(run: Path) -> dict[str, str]:
    """Return the digest of each of `FILES` that a run has: a link is none of its files."""
    own = [run / name for name in FILES]
    with durable.unreadable_named(run):
        return {p.name: contents(p) for p in own if p.is_file() and not p.is_symlink()}


def check_there(run: Path, accepted: Collection[str], files: Sequence[str] = FILES) -> None:
    """Raise `BadInput` if an ``accepted`` file of a run is gone, or any is a link. None is read."""
    durable.check_no_links(run / name for name in files)
    for path in (run / name for name in files if name in accepted):
        if not path.is_file():
            raise BadInput(f"{path} is missing")


def check_end(run: Path, status: str | None = None) -> None:
    """Check that a folder holds the end of the run that has its name, and that ``status``.

    Raises `BadInput`, naming the file. One file is read: `altcore.sweep.audit` reads all.
    """
    path = run / SUMMARY
    told = read_json(path)
    if not told:
        raise BadInput(f"{path} is missing, so {run} is no result")
    if told.get("name") != run.name:
        raise BadInput(f"{path} is that of another run, {shown(told.get('name'))}")
    if told.get("status") not in (ENDED if status is None else (status,)):
        was = f", which was accepted as {status}" if status else ", and that is no result"
        raise BadInput(f"{path} says that the run is {shown(told.get('status'))}{was}")


def differing(run: Path, config: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in which a run is not as a job asks, by dotted key, as the run has them.

    Of a retry, some settings are ``changed``.

    Raises `BadInput` if its config.yaml cannot be read.
    """
    own, asked = flat(read_configuration(run)), {**flat(config), **changed}
    # Of a length in epochs, a job leaves the steps to be counted.
    left_out = {*RECORDED, *(set(IN_STEPS.values()) - set(asked))}
    keys = dict.fromkeys([*asked, *own])
    return {k: own.get(k) for k in keys if k not in left_out and own.get(k) != asked.get(k)}


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a plain configuration by their dotted keys."""
    own = {key: value for key, value in config.items() if key != "settings"}
    for owner, settings in config.get("settings", {}).items():
        own |= {f"{owner}.{key}": value for key, value in settings.items()}
    return own
