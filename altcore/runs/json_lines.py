"""Records as lines of strict JSON, readable while they are written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from altcore import durable
from altcore.builtin_types import NONFINITE, to_json
from altcore.errors import BadInput
from altcore.log import log


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


NEEDED: dict[str, dict[str, type]] = {
    "metrics.jsonl": {"step": int},
    "events.jsonl": {"step": int, "event": str},
    "timings.jsonl": {"step": int},
}
"""What every line of a run's files has."""
NUMBERS = (
    *("loss", "val_loss", "epoch", "learning_rate", "grad_norm", "step_time_ms"),
    "items_per_second",
)
"""What is a number if a line has it."""
AFTER_PLUGINS = "grad_norm_after_plugins"
"""The norm of the gradients that plugins leave to `grad_clip`, if any work on gradients."""
LOOK_AHEAD = 4
"""Lines that `sample_lines` reads at a place before it goes on without one."""


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a .jsonl file of a run; words that mean numbers become numbers.

    Leaves out a last line that is torn, and any other that no run can have written: these are
    named in a warning, once a process. Raises `BadInput` if the file cannot be read.
    """
    raw = _bytes(path).split(b"\n")
    needed = NEEDED.get(path.name, {})
    lines = [_object(text, needed) for text in raw]
    # The last one has no end yet: it may be torn.
    broken = [i + 1 for i, text in enumerate(raw[:-1]) if text.strip() and lines[i] is None]
    if broken:
        _warn_of(str(path), tuple(broken))
    return [line for line in lines if line is not None]


def read_new_lines(path: Path, start: int) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the whole lines of a run's .jsonl file from a byte on, each with the byte after it.

    For those who follow a file that grows. Leaves out what no run can have written.
    """
    try:
        with path.open("rb") as file:
            file.seek(start)
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return
    for raw in lines:
        start += len(raw) + 1
        line = _object(raw, NEEDED.get(path.name, {}))
        if line is not None:
            yield line, start


def sample_lines(path: Path, key: str, count: int) -> list[dict[str, Any]]:
    """Return lines that have a key, near ``count`` evenly spaced places of a run's file, in order.

    The first line is at a place. Nothing else of the file is read, however long it is. Raises
    `BadInput` if it cannot be read.
    """
    needed = NEEDED.get(path.name, {})
    found: dict[int, dict[str, Any]] = {}
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            for place in range(count):
                if begin := size * place // count:
                    file.seek(begin - 1)
                    file.readline()  # to the end of the line at this place
                for _ in range(LOOK_AHEAD):
                    at = file.tell()
                    line = found.get(at) or _object(file.readline(), needed)
                    if line is not None and key in line:
                        found[at] = line
                        break
    except FileNotFoundError:
        return []
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error
    return [found[at] for at in sorted(found)]


def _bytes(path: Path) -> bytes:
    """Return what a file holds, nothing if there is none."""
    try:
        return durable.read_file(path)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error


def check_lines(path: Path) -> None:
    """Raise `BadInput`, with the line, if a file of a run has one that lacks what each has."""
    needed = NEEDED.get(path.name, {})
    for raw in _bytes(path).split(b"\n"):
        line = _object(raw, {})
        for key, kind in needed.items():
            if line is not None and type(line.get(key)) is not kind:
                shown = json.dumps(to_json(line))
                raise BadInput(f"{path}: {shown:.60} is not a line of a run: {key} is missing")


def lines_until(data: bytes, file: str, step: int) -> tuple[bytes, list[int]]:
    """Return the lines of a run's .jsonl file up to a step, each once, as a run ends them.

    The numbers of those that no run can have written come with them.
    """
    kept: dict[bytes, None] = {}
    damaged = []
    for number, raw in enumerate(data.split(b"\n")[:-1], 1):
        text = raw.strip()
        line = _object(text, NEEDED.get(file, {}))
        if line is not None and line["step"] <= step:
            kept[text + b"\n"] = None
        elif line is None and text:
            damaged.append(number)
    return b"".join(kept), damaged


def damaged_lines(path: Path) -> list[int]:
    """Return the numbers of a .jsonl file's lines that no run can have written, none without it."""
    return lines_until(_bytes(path), path.name, 0)[1]


def _fits(line: dict[str, Any], needed: dict[str, type]) -> bool:
    """Whether a run can have written the line, as far as its readers rely on it."""
    numbers = (line[key] for key in NUMBERS if line.get(key) is not None)
    return all(type(line.get(key)) is kind for key, kind in needed.items()) and all(
        isinstance(number, int | float) for number in numbers
    )


def _object(raw: bytes, needed: dict[str, type]) -> dict[str, Any] | None:
    """Return the object that a line holds, None if it holds none that a run writes."""
    try:
        line = json.loads(raw.decode())
    # Not UTF-8, not JSON, too many digits, too deep.
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict):
        return None
    found: dict[str, Any] = from_json(line)
    return found if _fits(found, needed) else None


@cache
def _warn_of(file: str, lines: tuple[int, ...]) -> None:
    log.warning("broken lines of a record are left out", file=file, lines=list(lines))
