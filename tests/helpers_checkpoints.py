"""Small checkpoints, without a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

PLAIN = {"evaluation": None, "snapshots": [], "logs": {}, "identity": {}, "environment": {}}
MANIFEST_KEYS = ("kind", "phase", "run_id", *PLAIN)


def manifest_of(step: int, **changes: Any) -> dict[str, Any]:
    """Return what a small checkpoint says of itself."""
    return {"kind": "regular", "phase": "training", "step": step, "run_id": "", **PLAIN, **changes}


def save(folder: Path, step: int = 3, **keys: Any) -> Path:
    """Write a small checkpoint; keys of its manifest, and all others of its state."""
    from altcore.runs import checkpoint

    own = {k: keys.pop(k) for k in MANIFEST_KEYS if k in keys}
    state = {"step": step, "model": {"w": torch.arange(6.0)}, **keys}
    folder.mkdir(exist_ok=True)
    return checkpoint.save_checkpoint(folder, state, manifest_of(step, **own))


def rewrite_manifest(path: Path, **changes: Any) -> None:
    """Change a manifest and give it the right digest, as somebody might who means no good."""
    from altcore.runs import manifest

    plain = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_bytes(manifest.encode_manifest({**plain, **changes}))


def without_resumes(run: Path) -> list[dict[str, Any]]:
    """Return the events of a run, but for those that tell of its going on and its own name.

    A tracker that could not send in time, as on a busy machine, is no difference either.
    """
    from altcore.runs import read_lines

    events = [
        e
        for e in read_lines(run / "events.jsonl")
        if e["event"] != "resume" and "was sent within" not in str(e.get("message"))
    ]
    return [{k: v for k, v in e.items() if k != "name"} for e in events]
