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
from pathlib import Path
from typing import Any

from altcore.errors import BadInput, InvalidCheckpoint, UnreadableFile
from altcore.runs.json_files import read_json
from altcore.runs.manifest import checkpoints_in, read_manifest

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
    told = id_in_environment(run)
    if told is not None:
        return told
    ids = [manifest[RUN_ID] for manifest in manifests_in(run)]
    return Counter(ids).most_common(1)[0][0] if ids else None


def id_in_environment(run: Path) -> str | None:
    """Return the id in environment.json; None if the file is lost or damaged.

    Raises `UnreadableFile` if the system does not give it out.
    """
    try:
        told = read_json(run / FILE).get(RUN_ID)
    except UnreadableFile:
        raise
    except BadInput:
        return None
    is_one = isinstance(told, str) and told[16:] == _check_digits(told[:16])
    return told if is_one else None


def manifests_in(run: Path) -> list[dict[str, Any]]:
    """Return the manifests of checkpoints that can be read, by step."""
    found = []
    for path in checkpoints_in(run / "checkpoints"):
        with suppress(InvalidCheckpoint):
            found.append(read_manifest(path))
    return sorted((m for m in found if m[RUN_ID]), key=lambda m: int(m["step"]))


def check_run_id(path: Path, manifest: Mapping[str, Any], run_id: str | None) -> None:
    """Raise `InvalidCheckpoint` if a checkpoint is not of this run."""
    if manifest[RUN_ID] != run_id:
        raise InvalidCheckpoint(
            f"checkpoint {path} is of another run: its {RUN_ID} is {manifest[RUN_ID] or 'none'}, "
            f"that of this run {run_id or 'none'}"
        )


def _check_digits(drawn: str) -> str:
    return hashlib.sha256(drawn.encode()).hexdigest()[:4]
