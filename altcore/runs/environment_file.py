"""``environment.json``, which a run has from its beginning: read, and compared with checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from altcore.errors import BadInput
from altcore.log import warn_once
from altcore.runs.json_files import read_json
from altcore.runs.own_checkpoint import has_record_of, restored_by
from altcore.runs.run_id import FILE, RUN_ID, id_in_environment, manifests_in


def read_environment(run: Path) -> dict[str, Any]:
    """Return the keys of environment.json. A warning names one that is missing, once a process.

    Raises `BadInput` if it cannot be read.
    """
    try:
        if not (run / FILE).exists():
            warn_once(f"{run / FILE} is missing: {restored_by(run)}")
        return read_json(run / FILE)
    except BadInput as error:
        error.hint = restored_by(run)
        raise


def has_environment(run: Path) -> bool:
    """Whether a run's environment.json can be read and has an id."""
    return id_in_environment(run) is not None


def check_environment(run: Path) -> None:
    """Raise `BadInput` if environment.json is of another run than all checkpoints."""
    told, manifests = id_in_environment(run), manifests_in(run)
    ids = {manifest[RUN_ID] for manifest in manifests}
    if told is None or len(ids) != 1 or told in ids:
        return
    hint = "these were not written with this record: put the run's own back"
    if any(has_record_of(run, manifest) for manifest in manifests):
        hint = f"remove the file, and altcore runs restore {run.name} writes it anew"
    problem = f"{run / FILE} is of run {told}, and all checkpoints are of run {ids.pop()}"
    raise BadInput(problem, hint=hint)
