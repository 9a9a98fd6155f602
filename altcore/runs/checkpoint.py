"""Checkpoints: the points at which a run can go on, written whole or not at all.

A checkpoint is a folder. ``weights.pt`` holds model and quantization, ``state.pt`` the rest of the
run's state, and ``manifest.json`` their digests, since torch.load finds no flipped bit. It is
written under a temporary name, synced and renamed: with the rename it is there. docs/checkpoints.md
describes the files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from attrs import frozen

from altcore import durable
from altcore.errors import BadInput, InvalidCheckpoint, UnfitState, UnreadableFile
from altcore.log import log
from altcore.runs.manifest import (
    ANOMALY,
    MANIFEST,
    TRAINING,
    checkpoints_in,
    encode_manifest,
    folder_of,
    read_manifest,
    regular_in,
)
from altcore.runs.run_id import RUN_ID
from altcore.runs.tensor_files import read_tensors, size_of, write_tensors

STATE, WEIGHTS_FILE = "state.pt", "weights.pt"
OF_WEIGHTS = ("step", "model", "buffers", "buffer_forms", "shared", "quantization")
"""The keys of a state that are in the file of the weights."""
SNAPSHOTS = "snapshots"
"""The folder of the snapshots, beside the checkpoints that refer to them."""
HALF_WRITTEN, HALF_REPLACED = ".tmp", ".old"
"""What follows the name of a checkpoint that is being written, and of the one that it replaces."""
OWN_HALF = re.compile(
    r"\.(best|last)\.([0-9a-f]+\.)?tmp|\.?((step|weights)-\d{8,}(\.pt)?|anomaly_\d{8,})\.(tmp|old)"
)
"""Names of what a process leaves half written or half removed; all others are somebody's own."""


@frozen(eq=False)
class Checkpoint:
    """A checkpoint that was read and found whole."""

    path: Path
    manifest: Mapping[str, Any]
    state: Mapping[str, Any] | None
    """None if the seed alone gives it: at step 0, with the workload's own model."""
    snapshots: Sequence[Mapping[str, Any]] = ()
    """The states for rollback, oldest first."""

    @property
    def step(self) -> int:
        """The step after which it was written."""
        step: int = self.manifest["step"]
        return step

    @property
    def kind(self) -> str:
        """Regular, anomaly or weights."""
        return str(self.manifest["kind"])


def save_checkpoint(
    folder: Path,
    state: Mapping[str, Any] | None,
    manifest: Mapping[str, Any],
    confirm: Callable[[], None] = lambda: None,
) -> Path:
    """Write a checkpoint into ``folder``, with the name that its manifest gives; return its path.

    One of the same name is replaced. ``confirm`` may raise once all is written: then nothing is
    there.

    Raises:
        NoSpace: if the disk is full; earlier files stay.
        AltcoreError: if what was written is not what is there: nothing is to be removed for it.
    """
    final = folder / folder_of(manifest["kind"], manifest["step"])
    temporary = folder / f"{final.name}{HALF_WRITTEN}"
    try:
        with durable.no_space_named(final, size_of(state)):
            durable.remove(temporary)
            durable.make_folder(temporary)
            files = {n: write_tensors(temporary / n, part) for n, part in _parts(state).items()}
            durable.write_file(temporary / MANIFEST, encode_manifest({**manifest, "files": files}))
            confirm()
            put_in_place(temporary, final)
    except BaseException:
        durable.remove(temporary)
        raise
    read_manifest(final)
    return final


def _parts(state: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    if state is None:
        return {}
    weights = {k: v for k, v in state.items() if k in OF_WEIGHTS}
    rest = {k: v for k, v in state.items() if k not in OF_WEIGHTS}
    # Each says which step it is of, so that files of two steps are never taken for one state.
    return {WEIGHTS_FILE: weights, STATE: {**rest, "step": state.get("step")}}


def put_in_place(temporary: Path, final: Path) -> None:
    """Give a whole folder its name, in the place of one that may be there."""
    durable.fsync_folder(temporary)
    replaced = final.with_name(f"{final.name}{HALF_REPLACED}") if final.exists() else None
    try:
        if replaced is not None:
            # No folder replaces another at once; after a crash `tidy` gives the old one its name.
            durable.rename(final, replaced)
        durable.rename(temporary, final)
    except BaseException:
        if replaced is not None and replaced.exists() and not final.exists():
            durable.rename(replaced, final)
        raise
    durable.fsync_folder(final.parent)
    if replaced is not None:
        durable.remove(replaced)


def drop(path: Path) -> None:
    """Remove a checkpoint at once: who reads the folder finds it whole, or not at all."""
    temporary = path.with_name(f".{path.name}{HALF_WRITTEN}")  # not the one of a new checkpoint
    with suppress(OSError):  # of NFS, for one, an earlier one cannot be removed while it is read
        durable.remove(temporary)
        try:
            durable.rename(path, temporary)
        finally:
            durable.remove(temporary)
    durable.remove(path)
    if temporary.exists() or path.exists():
        _warn_of_rest(path.parent)


@cache
def _warn_of_rest(folder: Path) -> None:
    problem = "an old checkpoint could not be removed wholly, as while another process reads it"
    log.warning(problem, folder=str(folder), hint="the rest goes when training goes on here anew")


def save_snapshot(folder: Path, snapshot: Mapping[str, Any]) -> dict[str, Any]:
    """Write a state for rollback; returns what manifests say that refer to it."""
    place, step = folder / SNAPSHOTS, snapshot["step"]
    temporary = place / f"step-{step:08d}.pt{HALF_WRITTEN}"
    with durable.no_space_named(temporary, size_of(snapshot)):
        if not place.is_dir():
            durable.make_folder(place)
        try:
            recorded = {"step": step, **write_tensors(temporary, snapshot)}
            name = snapshot_file(recorded)
            durable.rename(temporary, place / name)
        except BaseException:
            durable.remove(temporary)
            raise
        durable.fsync_folder(place)
    return {"file": name, **recorded}


def update_manifest(path: Path, **changes: Any) -> None:
    """Change what a checkpoint says of itself, at once or not at all."""
    durable.replace_file(path / MANIFEST, encode_manifest({**read_manifest(path), **changes}))
    durable.fsync_folder(path)


def tidy(folder: Path) -> None:
    """Remove what a process left half written or half removed; only for the run's one writer."""
    for place in (folder, folder / SNAPSHOTS):
        found = [*place.iterdir()] if place.is_dir() else []
        for path in (p for p in found if OWN_HALF.fullmatch(p.name)):
            final = path.with_name(path.name.removesuffix(HALF_REPLACED))
            if not final.exists():
                durable.rename(path, final)
            else:
                durable.remove(path)


def set_aside(folder: Path, step: int, run_id: str) -> None:
    """Rename the checkpoints after ``step``, which no run goes on from, to ``damaged_...``.

    Those of another run become ``foreign_...``. The weights alone of later steps are removed: they
    are made again. An anomaly that was the end of the run is that no more.
    """
    for path in checkpoints_in(folder):
        prefix, _, number = path.name.rpartition("-")
        if _is_foreign(path, run_id):
            _rename(path, f"foreign_{path.name}")
        elif prefix == "step" and int(number) > step:
            _rename(path, f"damaged_{path.name}")
        elif prefix and int(number) > step:
            durable.remove(path)
        elif (end := _end_in(path, run_id)) and end["step"] > step:
            update_manifest(path, phase=TRAINING)


def find_end(folder: Path, run_id: str, step: int) -> Path | None:
    """Return the anomaly with which a run ended, at ``step`` or later, if its end is one."""
    found = {path: _end_in(path, run_id) for path in checkpoints_in(folder)}
    ends = {path: m["step"] for path, m in found.items() if m is not None and m["step"] >= step}
    return max(ends, key=lambda path: ends[path], default=None)


def _end_in(path: Path, run_id: str) -> dict[str, Any] | None:
    """Return the manifest of an anomaly with which a run ended: of its last step."""
    try:
        manifest = read_manifest(path)
    except InvalidCheckpoint:
        return None
    is_end = manifest["kind"] == ANOMALY and manifest["phase"] != TRAINING
    return manifest if is_end and manifest[RUN_ID] == run_id else None


def _is_foreign(path: Path, run_id: str) -> bool:
    try:
        manifest = read_manifest(path)
    except InvalidCheckpoint:
        return False
    return bool(manifest[RUN_ID] != run_id)


def _rename(path: Path, name: str) -> None:
    aside = path.with_name(name)
    durable.remove(aside)
    durable.rename(path, aside)


def load_checkpoint(path: Path) -> Checkpoint:
    """Return a checkpoint, with its snapshots.

    Raises:
        InvalidCheckpoint: if any file of it is torn or altered.
        UnreadableFile: if the system does not give one out: nothing says that it is damaged.
    """
    manifest = read_manifest(path)
    state: dict[str, Any] = {}
    for name, recorded in manifest["files"].items():
        if name not in (STATE, WEIGHTS_FILE):
            raise InvalidCheckpoint(f"checkpoint {path}: {name!r:.60} is no file of a checkpoint")
        part = read_tensors(path / name, recorded)
        if part.get("step") != manifest["step"]:
            problem = f"{name} is of step {part.get('step')}, not {manifest['step']}"
            raise InvalidCheckpoint(f"checkpoint {path}: {problem}")
        state |= part
    if not state and manifest["step"] != 0:
        raise InvalidCheckpoint(f"checkpoint {path}: it has no state of step {manifest['step']}")
    snapshots = [
        read_tensors(path.parent / SNAPSHOTS / snapshot_file(entry), entry)
        for entry in manifest["snapshots"]
    ]
    return Checkpoint(path, manifest, state or None, snapshots)


def snapshot_file(recorded: Mapping[str, Any]) -> str:
    """Return the name of a snapshot's file.

    It follows from what is in it: one that is written anew replaces none that older checkpoints
    refer to.
    """
    return f"step-{recorded['step']:08d}-{recorded['sha256'][:12]}.pt"


class NoCheckpoint(BadInput):
    """No checkpoint of a folder is valid."""


def load_newest(folder: Path, accept: Callable[[Checkpoint], None] | None = None) -> Checkpoint:
    """Return the newest valid regular checkpoint, and warn of each invalid one.

    ``accept`` may look closer: if it raises `InvalidCheckpoint`, the one before is tried. That a
    state is an `UnfitState` is told only if an earlier one fits: it may be what was built that is
    wrong. Raises
    `NoCheckpoint` if there is none, and `UnreadableFile` if the system does not give one out.
    """
    unfit: list[tuple[Path, UnfitState]] = []
    for path in _newest_first(folder):
        try:
            checkpoint = load_if_valid(path, accept)
        except UnfitState as error:
            unfit.append((path, error))
            continue
        if checkpoint is not None:
            for other, why in unfit:
                _warn_of_invalid(other, why)
            return checkpoint
    raise NoCheckpoint(f"there is no valid checkpoint in {folder}")


def has_checkpoint(folder: Path) -> bool:
    """Whether there is a regular checkpoint in a folder, valid or not."""
    return bool(regular_in(folder))


def _newest_first(folder: Path) -> Iterator[Path]:
    """Yield the regular checkpoints, valid or not, and before older ones what came since."""
    seen = set()
    while new := [x for p in regular_in(folder) if (x := (p, _which(p))) not in seen]:
        seen.add(new[0])
        yield new[0][0]


def _which(path: Path) -> int | None:
    """Return which folder a path is that of now; None if there is none."""
    try:
        with durable.unreadable_named(path):
            return path.stat().st_ino
    except OSError:
        return None


def load_newest_weights(folder: Path, most_bytes: int) -> dict[str, Any] | None:
    """Return what the newest valid regular checkpoint has in its file of weights.

    None if there is none, if the seed alone gives it, if the file has more than ``most_bytes``, or,
    with a warning, if the system does not give it out.
    """
    for path in _newest_first(folder):
        try:
            recorded = read_manifest(path)["files"].get(WEIGHTS_FILE)
            if recorded is None or recorded["bytes"] > most_bytes:
                return None
            return read_tensors(path / WEIGHTS_FILE, recorded)
        except InvalidCheckpoint as error:
            log.warning("a checkpoint is not valid, and left out", error=str(error))
        except UnreadableFile as error:
            log.warning("the weights are left out", error=str(error))
            return None
    return None


def load_if_valid(
    path: Path, accept: Callable[[Checkpoint], None] | None = None
) -> Checkpoint | None:
    """Return a checkpoint, or warn that it is not valid; ``accept`` as in `load_newest`.

    Without a warning if its writer removed or replaced it meanwhile. Raises `UnfitState` if
    ``accept`` does.
    """
    which = _which(path)
    try:
        checkpoint = load_checkpoint(path)
        if accept is not None:
            accept(checkpoint)
    except (InvalidCheckpoint, UnreadableFile) as error:
        if which is None or _which(path) != which:
            return None
        if isinstance(error, UnreadableFile | UnfitState):
            raise
        _warn_of_invalid(path, error)
        return None
    return checkpoint


def _warn_of_invalid(path: Path, error: InvalidCheckpoint) -> None:
    told = {"checkpoint": path.name, "error": str(error)}
    log.warning("a checkpoint is not valid; going back to the one before", **told)
