"""Records as lines of strict JSON, readable while they are written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from altcore.builtin_types import NONFINITE


def from_json(value: Any) -> Any:
    """Undo `to_json`: return words that mean numbers as numbers.

    Text that people write (reasons, messages) stays as it is.
    """
    if isinstance(value, str):
        return NONFINITE.get(value, value)
    if isinstance(value, dict):
        return {
            k: v if k in ("event", "reason", "message") else from_json(v) for k, v in value.items()
        }
    return [from_json(v) for v in value] if isinstance(value, list) else value


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a .jsonl file of a run. Leaves out a torn last line, and turns words into numbers."""
    if not path.exists():
        return []
    lines: list[dict[str, Any]] = []
    for raw in path.read_text(encoding="utf-8").split("\n"):
        try:
            line = json.loads(raw)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict):
            lines.append(from_json(line))
    return lines


def is_torn(path: Path) -> bool:
    """Return whether a file ends in the middle of a line."""
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"
