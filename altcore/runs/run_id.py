"""Which run a checkpoint is of: an id, drawn when the run is made, that every manifest holds.

``environment.json`` holds it, too. So a checkpoint that was copied in from another run is found,
even if all else is alike.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from altcore.errors import BadInput, InvalidCheckpoint
from altcore.log import log
from altcore.runs.json_files import read_json
from altcore.runs.manifest import is_checkpoint, read_manifest

FILE = "environment.json"
RUN_ID = "run_id"
"""The key in manifests and in environment.json."""


def new_run_id() -> str:
    """Return the id of a new run. Its last digits check the others."""
    drawn = secrets.token_hex(8)
    return f"{drawn}{_check_digits(drawn)}"


def run_id_of(run: Path) -> str | None:
    """Return the id of a run, None if nothing tells.

    If environment.json is lost or damaged, it is that of most checkpoints, or of the oldest.
    """
    told = _id_in_environment(run)
    if told is not None:
        return told
    ids = _ids_of_checkpoints(run)
    return Counter(ids).most_common(1)[0][0] if ids else None


def restored_by(run: Path) -> str:
    """Return what brings a lost or damaged file of a run back."""
    return f"altcore runs restore {run.name} writes it anew, from the newest checkpoint"


def read_environment(run: Path) -> dict[str, Any]:
    """Return the keys of environment.json. A warning names one that is missing, once a process.

    Raises `BadInput` if it cannot be read.
    """
    try:
        if not (run / FILE).exists():
            _warn_of(f"{run / FILE} is missing: {restored_by(run)}")
        return read_json(run / FILE)
    except BadInput as error:
        error.hint = restored_by(run)
        raise


@cache
def _warn_of(problem: str) -> None:
    log.warning(problem)


def has_environment(run: Path) -> bool:
    """Whether a run's environment.json can be read and has an id."""
    return _id_in_environment(run) is not None


def check_environment(run: Path) -> None:
    """Raise `BadInput` if environment.json is of another run than all checkpoints."""
    told, ids = _id_in_environment(run), {*_ids_of_checkpoints(run)}
    if told is not None and len(ids) == 1 and told not in ids:
        raise BadInput(
            f"{run / FILE} is of run {told}, and all checkpoints are of run {ids.pop()}",
            hint=f"remove the file, and {restored_by(run)}",
        )


def _id_in_environment(run: Path) -> str | None:
    with suppress(BadInput, OSError):
        told = read_json(run / FILE).get(RUN_ID)
        if isinstance(told, str) and told[16:] == _check_digits(told[:16]):
            return told
    return None


def _ids_of_checkpoints(run: Path) -> list[str]:
    """Return the ids in the manifests that can be read, by step."""
    manifests = []
    for path in filter(is_checkpoint, (run / "checkpoints").glob("*")):
        with suppress(InvalidCheckpoint):
            manifests.append(read_manifest(path))
    return [m[RUN_ID] for m in sorted(manifests, key=lambda m: int(m["step"])) if m[RUN_ID]]


def check_run_id(path: Path, manifest: Mapping[str, Any], run_id: str | None) -> None:
    """Raise `InvalidCheckpoint` if a checkpoint is not of this run."""
    if manifest[RUN_ID] != run_id:
        raise InvalidCheckpoint(
            f"checkpoint {path} is of another run: its {RUN_ID} is {manifest[RUN_ID] or 'none'}, "
            f"that of this run {run_id or 'none'}"
        )


def _check_digits(drawn: str) -> str:
    return hashlib.sha256(drawn.encode()).hexdigest()[:4]
