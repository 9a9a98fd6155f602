"""Reading runs back: finding them, and how they ended."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from altcore.config import check_name
from altcore.errors import BadInput, nearest
from altcore.hooks import build
from altcore.runs.directory import EVENTS, METRICS
from altcore.runs.json_files import read_json
from altcore.runs.json_lines import read_lines
from altcore.runs.summary import KEYS, UNFINISHED, Summary, read_summary


def find_run(name: str, runs_dir: str) -> Path:
    """Return the directory of a run. Raises `BadInput` if there is none with that name."""
    path = Path(runs_dir) / check_name(name, "run")
    if not (path / "config.yaml").is_file():
        known = [p.name for p in list_runs(runs_dir)]
        raise BadInput(f"there is no run {name!r} in {runs_dir}", meant=nearest(name, known))
    return path


def list_runs(runs_dir: str) -> list[Path]:
    """Return the run directories, oldest first."""
    root = Path(runs_dir)
    if root.exists() and not root.is_dir():
        raise BadInput(f"{root} is not a folder", key="runs_dir")
    found = [p for p in root.iterdir() if (p / "config.yaml").is_file()] if root.is_dir() else []
    return sorted(found, key=lambda p: ((p / "config.yaml").stat().st_mtime, p.name))


def summary_of(path: Path) -> dict[str, Any]:
    """Return a run's summary, by the keys of `Summary`.

    While a run is not over, these are the facts so far, and the last step that it recorded.

    Raises `BadInput` if its summary.json is not one.
    """
    return (read_summary(path) or _so_far(path)).to_plain()


def identity_in(path: Path) -> dict[str, Any]:
    """Return the identity in the newest checkpoint of a run that can be read, empty if none can."""
    for manifest in sorted(path.glob("checkpoints/step-*/manifest.json"), reverse=True):
        with suppress(BadInput):
            found = read_json(manifest).get("identity")
            if isinstance(found, dict):
                return found
    return {}


def _so_far(path: Path) -> Summary:
    lines = read_lines(path / METRICS)
    events = read_lines(path / EVENTS)
    start = next((e for e in events if e["event"] == "start"), {})
    known = {k: v for k, v in start.items() if k in KEYS}
    steps = max((x["step"] for x in lines if "loss" in x), default=0)
    given = {**known, "name": path.name, "directory": str(path), "steps": steps}
    try:
        made: Summary = build(Summary, {**given, "status": UNFINISHED})
    except BadInput as error:
        raise BadInput(f"{path / EVENTS} is not the record of a run: {error}") from error
    return made
