"""What a checkpoint says of itself: ``manifest.json``, which holds its own digest."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from altcore.builtin_types import to_json
from altcore.durable import read_file, unreadable_named
from altcore.errors import BadInput, InvalidCheckpoint, UnreadableFile, shown

MANIFEST = "manifest.json"
REGULAR, ANOMALY, WEIGHTS = "regular", "anomaly", "weights"
NAMES = {REGULAR: "step-{:08d}", ANOMALY: "anomaly_{:08d}", WEIGHTS: "weights-{:08d}"}
"""The folder of a checkpoint of each kind, by its step."""
_FOLDER = re.compile(r"(step-|anomaly_|weights-)\d{8,}")

TRAINING, TRAINED, ENDED_PHASE = "training", "trained", "ended"
"""The phases of a run: steps are left; no step is left, but its end is; nothing is left."""

_KEYS: dict[str, type | tuple[type, ...]] = {
    "kind": str,
    "run_id": str,
    "step": int,
    "phase": str,
    "evaluation": (dict, type(None)),
    "files": dict,
    "snapshots": list,
    "logs": dict,
    "identity": dict,
    "environment": dict,
}


def folder_of(kind: str, step: int) -> str:
    """Return the name of a checkpoint's folder.

    >>> folder_of(REGULAR, 480)
    'step-00000480'
    """
    return NAMES[kind].format(step)


def kind_and_step(name: str) -> tuple[str, int]:
    """Return of which kind and step the checkpoint in a folder is, by the folder's name.

    >>> kind_and_step("step-00000480")
    ('regular', 480)
    """
    step = int(re.split("[-_]", name)[1])
    return next(kind for kind in NAMES if folder_of(kind, step) == name), step


def is_checkpoint(path: Path) -> bool:
    """Whether a path is the folder of a checkpoint, not that of one being written or removed."""
    if _FOLDER.fullmatch(path.name) is None:
        return False
    with unreadable_named(path):
        return path.is_dir() and not path.is_symlink()


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the folders of the checkpoints in a folder, valid or not; none if there is no folder.

    Raises `UnreadableFile` if the system does not tell.
    """
    with unreadable_named(folder):
        try:
            return [path for path in folder.iterdir() if is_checkpoint(path)]
        except (FileNotFoundError, NotADirectoryError):
            return []


def regular_in(folder: Path) -> list[Path]:
    """Return the regular checkpoints in a folder, valid or not, the newest first."""
    start = folder_of(REGULAR, 0)[:5]
    found = [p for p in checkpoints_in(folder) if p.name.startswith(start)]
    return sorted(found, key=lambda p: int(p.name.removeprefix(start)), reverse=True)


def check_no_linked(folder: Path) -> None:
    """Raise `BadInput` for a checkpoint in a folder that is a symbolic link: it would be passed by.

    What is written through it, or removed for it, lies elsewhere.
    """
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_symlink() and _FOLDER.fullmatch(path.name):
            hint = "move the checkpoint itself here, or link the whole folder of the checkpoints"
            raise BadInput(f"{path} is a symbolic link, and no checkpoint", hint=hint)


def encode_manifest(manifest: Mapping[str, Any]) -> bytes:
    """Return a manifest as its file holds it, with its digest."""
    rest = json.loads(json.dumps(to_json({k: v for k, v in manifest.items() if k != "digest"})))
    return json.dumps({"digest": _digest(rest), **rest}, indent=1).encode() + b"\n"


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of the checkpoint in a folder.

    Raises:
        InvalidCheckpoint: if it is missing, torn or altered, or that of another checkpoint.
        UnreadableFile: if the system does not give it out.
    """
    try:
        manifest = json.loads(read_file(path / MANIFEST))
        if not isinstance(manifest, dict) or "digest" not in manifest:
            problem = f"{MANIFEST} is no manifest: it holds {shown(manifest)}"
            raise InvalidCheckpoint(f"checkpoint {path}: {problem}")
        digest = manifest.pop("digest")
        is_whole = digest == _digest(manifest)
    except UnreadableFile:  # a ValueError, too
        raise
    # No file, not UTF-8, not JSON, too deep.
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidCheckpoint(
            f"checkpoint {path}: {MANIFEST} cannot be read: {error!r}"
        ) from error
    if not is_whole:
        raise InvalidCheckpoint(f"checkpoint {path}: {MANIFEST} does not match its digest")
    if not (
        all(isinstance(manifest.get(key), kind) for key, kind in _KEYS.items())
        and manifest["kind"] in NAMES
        and path.name == folder_of(manifest["kind"], manifest["step"])
        and all(map(_is_recorded, (*manifest["files"].values(), *manifest["logs"].values())))
        and all(_is_recorded(x) and type(x.get("step")) is int for x in manifest["snapshots"])
    ):
        raise InvalidCheckpoint(f"checkpoint {path}: {MANIFEST} is not that of this checkpoint")
    return {"digest": digest, **manifest}


def _is_recorded(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("sha256"), str)
        and re.fullmatch("[0-9a-f]{64}", value["sha256"]) is not None
        and type(value.get("bytes")) is int
        and value["bytes"] >= 0
    )


def _digest(rest: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the canonical JSON of all but the digest."""
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
