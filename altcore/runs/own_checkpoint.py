"""Which checkpoint is a run's own, so that it may bring back what the run lost."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from altcore.durable import unreadable_named
from altcore.errors import InvalidCheckpoint
from altcore.runs.manifest import read_manifest, regular_in
from altcore.runs.run_id import check_run_id, run_id_of


def newest_manifest(run: Path) -> tuple[Path | None, dict[str, Any]]:
    """Return a run's newest checkpoint whose manifest can be read and has its id, and that."""
    return next(_own(run), (None, {}))


def restorable(run: Path) -> tuple[Path | None, dict[str, Any]]:
    """Return the checkpoint, and its manifest, by which lost files of a run are written anew.

    It is the newest one that was written with the record that is here: one of a copy of the run,
    which has the same id, was not. If the record is damaged, so that it is that of none, it is the
    newest. Raises `UnreadableFile` if the system gives out the manifest of any, or the record, not.
    """
    own = [x for x in _own(run) if x[1]["identity"].get("configuration")]
    written_here = (x for x in own if has_record_of(run, x[1]))
    return next(written_here, own[0] if own else (None, {}))


def restored_by(run: Path) -> str:
    """Return what brings a lost or damaged file of a run back; what there is no hope of, too."""
    checkpoint, _ = restorable(run)
    if checkpoint is None:
        return "no checkpoint of the run holds it: train anew under another --name"
    return f"altcore runs restore {run.name} writes it anew, from {checkpoint.name}"


def has_record_of(run: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether the .jsonl files of a run begin as a checkpoint has them."""
    return all(begins_as(run / Path(file).name, x) for file, x in manifest["logs"].items())


def begins_as(file: Path, recorded: Mapping[str, Any]) -> bool:
    """Whether a file begins with the bytes whose number and hash are recorded.

    Raises `UnreadableFile` if the system does not give it out.
    """
    digest, left = hashlib.sha256(), recorded["bytes"]
    with suppress(OSError), unreadable_named(file), file.open("rb") as stream:
        while piece := stream.read(min(left, 1 << 20)):
            digest.update(piece)
            left -= len(piece)
    return left == 0 and digest.hexdigest() == recorded["sha256"]


def _own(run: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the checkpoints with a run's id, the newest first."""
    run_id = run_id_of(run)
    for path in regular_in(run / "checkpoints"):
        with suppress(InvalidCheckpoint):
            manifest = read_manifest(path)
            check_run_id(path, manifest, run_id)
            yield path, manifest
