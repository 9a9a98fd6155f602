"""Checkpoints, written whole or not at all. A digest finds flipped bits, which torch.load does not.

A checkpoint is a folder with ``state.pt``, and ``manifest.json`` with its SHA-256. It is written
under a temporary name, synced and renamed. Then the pointer files ``last`` and ``best`` change.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import structlog
import torch

from altcore.errors import AltcoreError, BadInput
from altcore.runs.durable import fsync_folder, no_space_named

log = structlog.get_logger("altcore")

STATE, MANIFEST = "state.pt", "manifest.json"


def save_checkpoint(
    folder: Path, name: str, state: Mapping[str, Any], about: Mapping[str, Any]
) -> Path:
    """Write a checkpoint with this ``name`` into ``folder``; return its path.

    ``about`` goes into the manifest. Raises `NoSpace` if the disk is full; earlier files stay.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    data = buffer.getvalue()
    manifest = {
        **about,
        "files": {STATE: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}},
    }
    final, temporary = folder / name, folder / f"{name}.tmp-{uuid.uuid4().hex[:8]}"
    try:
        with no_space_named(final, len(data)):
            temporary.mkdir(parents=True)
            _write_synced(temporary / STATE, data)
            _write_synced(temporary / MANIFEST, json.dumps(manifest, indent=1).encode())
            fsync_folder(temporary)
            if final.exists():
                # A step saved twice, at its interval and at the end, has the same state.
                shutil.rmtree(final)
            temporary.replace(final)
            fsync_folder(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def point_to(folder: Path, pointer: str, name: str) -> None:
    """Let the pointer file (``last`` or ``best``) name a checkpoint."""
    temporary = folder / f".{pointer}.tmp"
    with no_space_named(folder / pointer, len(name)):
        _write_synced(temporary, name.encode())
        temporary.replace(folder / pointer)
        fsync_folder(folder)


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Remove the oldest regular checkpoints but ``keep``; pointed-at ones and anomalies stay."""
    pointed = [_pointed(folder / name) for name in ("last", "best") if (folder / name).exists()]
    if None in pointed:
        # Any of them may be the one that was meant.
        return
    regular = sorted(p for p in folder.glob("step-*") if ".tmp-" not in p.name)
    for path in regular[:-keep]:
        if path not in pointed:
            shutil.rmtree(path)


def _pointed(pointer: Path) -> Path | None:
    """Return the checkpoint that a pointer file names; warn and return None if it names none."""
    try:
        path = pointer.parent / pointer.read_text()
        if path.is_dir() and path.parent == pointer.parent:
            return path
    # Not UTF-8, a NUL in the name, or no file.
    except (OSError, ValueError):
        pass
    log.warning("a pointer names no checkpoint: all are kept until it does", file=str(pointer))
    return None


def load_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a checkpoint's state and manifest. Raises `AltcoreError` if it is torn or altered."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        expected = manifest["files"][STATE]["sha256"]
        data = (path / STATE).read_bytes()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AltcoreError(f"checkpoint {path} cannot be read: {error!r}") from error
    if hashlib.sha256(data).hexdigest() != expected:
        raise AltcoreError(f"checkpoint {path}: {STATE} does not match its sha256")
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    # Of data that it did not write, torch raises anything.
    except Exception as error:
        raise AltcoreError(f"checkpoint {path}: {STATE} cannot be read: {error!r:.200}") from error
    if not isinstance(state, dict):
        raise AltcoreError(f"checkpoint {path}: {STATE} holds no state")
    return state, manifest


def load_newest(
    folder: Path, check: Callable[[dict[str, Any], dict[str, Any]], object] = lambda *_: None
) -> tuple[dict[str, Any], dict[str, Any], Path]:
    """Return the newest valid regular checkpoint, and warn of each invalid one.

    ``check`` gets state and manifest. It raises `AltcoreError` for one that is not valid, and
    `BadInput` if none is to be taken.
    """
    found = sorted(p for p in folder.glob("step-*") if ".tmp-" not in p.name)
    for path in reversed(found):
        try:
            state, manifest = load_checkpoint(path)
            check(state, manifest)
        except BadInput:
            raise
        except AltcoreError as error:
            log.warning("a checkpoint is not valid; going back to the one before", error=str(error))
            continue
        return state, manifest, path
    raise BadInput(f"there is no valid checkpoint in {folder}")
