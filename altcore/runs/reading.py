"""Reading runs back: finding them, and how they ended."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from altcore.config import check_name
from altcore.durable import check_kinds, unreadable_named
from altcore.errors import BadInput, nearest
from altcore.hooks import build
from altcore.log import log, warn_once
from altcore.run_files import CONFIG, EVENTS, METRICS, SUMMARY
from altcore.runs.history import finite
from altcore.runs.json_lines import check_lines, read_lines, sample_lines
from altcore.runs.missing import lost_summary
from altcore.runs.own_checkpoint import newest_manifest, restored_by
from altcore.runs.run_id import RUN_ID, run_id_of
from altcore.runs.summary import KEYS, UNFINISHED, Summary, read_summary
from altcore.yaml_files import read_mapping


def find_run(name: str, runs_dir: str) -> Path:
    """Return the directory of a run.

    Raises `BadInput` if there is none with that name, and `UnreadableFile` if nobody may look.
    """
    try:
        path = Path(runs_dir) / check_name(name, "run")
    except BadInput as error:
        last = Path(str(name)).name
        folder = Path(runs_dir) / last
        if last and folder.is_dir():
            other = f"{last} names the run in {runs_dir}"
            error.hint = f"{error.hint}; rename {folder}" if last == name else other
        raise
    with unreadable_named(path):
        check_kinds(path, files=[CONFIG], folders=[])
        check_has_configuration(path)
        if not _is_run(path):
            raise no_run(name, runs_dir)
    return path


def no_run(name: str, runs_dir: str) -> BadInput:
    """Return the refusal of a name that no run has, with the nearest one that there is."""
    known = [p.name for p in list_runs(runs_dir)]
    return BadInput(f"there is no run {name!r} in {runs_dir}", meant=nearest(name, known))


def check_has_configuration(path: Path) -> None:
    """Raise `BadInput` if a folder is a run's by its checkpoints, and config.yaml is missing."""
    if not (path / CONFIG).exists() and newest_manifest(path)[0] is not None:
        hint = restored_by(path)
        raise BadInput(f"{path / CONFIG} is missing", hint=hint)


def read_configuration(path: Path) -> dict[str, Any]:
    """Return the keys in a run's config.yaml, with their lines.

    Raises:
        BadInput: if it is empty, torn, or cannot be read; it says how to restore it.
    """
    file = path / CONFIG
    try:
        check_kinds(path, files=[CONFIG], folders=[])  # a pipe would be waited for
        plain = read_mapping(file, "run")
    except BadInput as error:
        error.hint = restored_by(path)
        raise
    missing = [key for key in ALWAYS if key not in plain]
    settings = plain.get("settings")
    if missing:
        problem = f"it is torn: the key {missing[0]} is missing" if plain else "it is empty"
    elif not isinstance(settings, dict) or not all(isinstance(s, dict) for s in settings.values()):
        problem = "its settings are not mappings"
    else:
        return plain
    raise BadInput(problem, key="run", part=str(file), hint=restored_by(path))


ALWAYS = ("workload", "optimizer", "recipe", "seed", "settings")
"""Keys that every config.yaml has; the first and the last are among them."""


def list_runs(runs_dir: str, tell: Callable[[str], object] = log.warning) -> list[Path]:
    """Return the run directories, oldest first; ``tell`` takes why one is left out."""
    root = Path(runs_dir)
    if root.exists() and not root.is_dir():
        raise BadInput(f"{root} is not a folder", key="runs_dir")
    found = []
    for path in root.iterdir() if root.is_dir() else ():
        try:
            with unreadable_named(path):
                found += [path] if _is_run(path) else []
                check_has_configuration(path)
        except BadInput as error:
            tell(f"a run is left out: {error}")
    return sorted(found, key=lambda p: ((p / CONFIG).stat().st_mtime, p.name))


def _is_run(path: Path) -> bool:
    """Whether a folder has a run's config.yaml: a file of its own, not a link to another."""
    return (path / CONFIG).is_file() and not (path / CONFIG).is_symlink()


def summary_of(path: Path) -> dict[str, Any]:
    """Return a run's summary, by the keys of `Summary`.

    While a run is not over, these are the facts so far, and the last step that it recorded.

    Raises `BadInput` if its summary.json is not one, or, without one, if no run can have written
    the record.
    """
    return (read_summary(path) or _so_far(path)).to_plain()


def identity_in(path: Path) -> dict[str, Any]:
    """Return the identity in the newest checkpoint of a run that can be read, empty if none can."""
    found: dict[str, Any] = newest_manifest(path)[1].get("identity", {})
    return found


def _so_far(path: Path) -> Summary:
    for file in (METRICS, EVENTS):
        check_lines(path / file)
    if lost := lost_summary(path):
        warn_once(lost)
    lines, events = read_lines(path / METRICS), read_lines(path / EVENTS)
    start = next((e for e in events if e["event"] == "start"), {})
    known = {k: v for k, v in start.items() if k in KEYS}
    steps = max((x["step"] for x in lines if "loss" in x), default=0)
    given = {**known, "name": path.name, "directory": str(path), "steps": steps}
    given[RUN_ID] = run_id_of(path)
    given |= _losses(lines, path)
    with suppress(BadInput):
        given["changes"] = read_mapping(path / CONFIG, "run").get("changes", [])
    try:
        made: Summary = build(Summary, {**given, "status": UNFINISHED})
    except BadInput as error:
        raise BadInput(f"{path / EVENTS} is not the record of a run: {error}") from error
    return made


def _losses(lines: Sequence[Mapping[str, Any]], path: Path) -> dict[str, Any]:
    """Return the losses of a run that is not over, as its summary would have them.

    The best evaluation is left open if another value than the loss decides it.
    """
    found: dict[str, Any] = {}
    steps = [(loss, x["step"]) for x in lines if (loss := finite(x.get("loss"))) is not None]
    if steps:
        found["final_loss"], found["final_loss_step"] = steps[-1]
        found["best_loss"], found["best_loss_step"] = min(steps)
    evaluations = [x for x in lines if finite(x.get("val_loss")) is not None]
    if evaluations:
        last = evaluations[-1]
        found |= {"val_loss": last["val_loss"], "evaluation": last}
        found["val_loss_float32"] = finite(last.get("val_loss_float32"))
        with suppress(BadInput):
            if read_mapping(path / CONFIG, "run").get("monitor") == "val_loss":
                best = min(evaluations, key=lambda x: x["val_loss"])
                found |= {"best_val_loss": best["val_loss"], "best_step": best["step"]}
                found |= {"best_evaluation": best, "monitor": "val_loss"}
    return found


def last_written(path: Path) -> float | None:
    """Return when a run last wrote to its record, in seconds since the epoch; None if never."""
    files = (path / name for name in (SUMMARY, EVENTS, METRICS))
    return max((f.stat().st_mtime for f in files if f.exists()), default=None)


def sample_losses(path: Path, count: int) -> list[float]:
    """Return training losses at up to ``count`` evenly spaced places of a run's record, in order.

    The record is not read as a whole: see `sample_lines`.
    """
    lines = sample_lines(path / METRICS, "loss", count)
    return [math.nan if line["loss"] is None else line["loss"] for line in lines]
