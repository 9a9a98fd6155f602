"""The run directory: everything that happened, enough to resume, compare and report."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch
import yaml
from attrs import define, field

from altcore.config import TrainConfig, check_name
from altcore.errors import BadInput, NoSpace
from altcore.recipes import SUFFIXES, has_own_formats
from altcore.registry import entries

NONFINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
"""JSON has no such numbers: they are written as these words."""

METRICS, EVENTS, TIMINGS = "metrics.jsonl", "events.jsonl", "timings.jsonl"


def to_json(value: Any) -> Any:
    """Return ``value`` with non-finite numbers as words, for strict JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    return value


def from_json(value: Any) -> Any:
    """Return what `to_json` was given: words that mean numbers are numbers again.

    What people write (reasons, messages) stays as it is.
    """
    if isinstance(value, str):
        return NONFINITE.get(value, value)
    if isinstance(value, dict):
        return {
            k: v if k in ("event", "reason", "message") else from_json(v) for k, v in value.items()
        }
    return [from_json(v) for v in value] if isinstance(value, list) else value


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a .jsonl file of a run; a torn last line is left out, words become numbers again."""
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
    """Return whether a file ends within a line."""
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


@contextmanager
def no_space_named(path: Path, needed: int = 0) -> Iterator[None]:
    """Turn a full disk into `NoSpace`, naming the path and the bytes needed."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise NoSpace(f"no space left to write {path} ({needed} bytes needed)") from error


@define(eq=False)
class RunDirectory:
    """One run's directory, held by one process."""

    path: Path
    _lock: IO[str]
    _files: dict[str, IO[str]] = field(factory=dict)

    @classmethod
    def create(cls, config: TrainConfig) -> RunDirectory:
        """Make the directory of a new run.

        A given name must be new (`BadInput`); otherwise one is made of the label, or of format and
        recipe.
        """
        root = Path(config.runs_dir)
        try:
            root.mkdir(parents=True, exist_ok=True)
            path = _fresh(root, config) if config.name is None else _named(root, config.name)
        except OSError as error:
            raise BadInput(f"runs_dir: {root} cannot be written: {error.strerror}") from error
        return cls._locked(path)

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Take an existing run's directory, to resume it."""
        return cls._locked(path)

    @classmethod
    def _locked(cls, path: Path) -> RunDirectory:
        lock = (path / ".lock").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise BadInput(f"run {path.name} is being written by another process") from error
        for folder in ("checkpoints", "reports"):
            (path / folder).mkdir(exist_ok=True)
        return cls(path, lock)

    def append(self, file: str, line: Mapping[str, Any]) -> None:
        """Append a line to a .jsonl file; it can be read at once."""
        text = json.dumps(to_json(line), allow_nan=False) + "\n"
        with no_space_named(self.path / file, len(text)):
            if file not in self._files:
                torn = is_torn(self.path / file)
                self._files[file] = (self.path / file).open("a", encoding="utf-8")
                # Else the first line after a crash would be lost with the torn one.
                self._files[file].write("\n" * torn)
            self._files[file].write(text)
            self._files[file].flush()

    def write(self, file: str, text: str) -> None:
        """Write a whole file, replacing it at once or not at all."""
        path = self.path / file
        temporary = path.with_name(f".{path.name}.tmp")
        with no_space_named(path, len(text)):
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)

    def write_json(self, file: str, data: Mapping[str, Any]) -> None:
        """Write a whole .json file."""
        self.write(file, json.dumps(to_json(data), indent=1) + "\n")

    def drop_after(self, step: int) -> None:
        """Forget lines of metrics and timings after ``step``: a resumed run writes them anew."""
        for file in (METRICS, TIMINGS):
            kept = [x for x in read_lines(self.path / file) if x.get("step", 0) <= step]
            self.write(file, "".join(json.dumps(to_json(x)) + "\n" for x in kept))

    def close(self) -> None:
        """Close the files and give up the lock."""
        for file in self._files.values():
            # What a full disk did not take was named when it was written.
            with suppress(OSError):
                file.close()
        self._files.clear()
        self._lock.close()


def _named(root: Path, name: str) -> Path:
    path = root / name
    try:
        path.mkdir()
    except FileExistsError as error:
        raise BadInput(
            f"name: {path} exists; choose another name, or go on with it by --resume {name}"
        ) from error
    return path


def _fresh(root: Path, config: TrainConfig) -> Path:
    base = as_name(config.label or "") or _from_recipe(config)
    for number in range(1, 100_000):
        path = root / (base if number == 1 else f"{base}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise BadInput(f"runs_dir {root}: too many runs are called {base}: give one a --name")


def as_name(text: str) -> str:
    """Return a text as a run's name, with room for a number; empty where nothing is left.

    >>> as_name("E4M3, mine (2)")
    'E4M3-mine-2'
    """
    return re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-_")[:90]


def _from_recipe(config: TrainConfig) -> str:
    own = config.format is None and has_own_formats(config.recipe)
    fmt = [] if own else [config.format.name if config.format else "none"]
    return "-".join(filter(None, [*map(as_name, fmt), recipe_label(config)])).lower()


def recipe_label(config: TrainConfig) -> str:
    """Return what the recipe is called in names of runs and folders."""
    name = config.recipe_name
    return as_name(name.removesuffix(next(filter(name.endswith, SUFFIXES), ""))) or "given"


def find_run(name: str, runs_dir: str) -> Path:
    """Return the directory of the run called ``name``; `BadInput` if there is none."""
    path = Path(runs_dir) / check_name(name, "run")
    if not (path / "config.yaml").is_file():
        from altcore.errors import nearest

        known = [p.name for p in list_runs(runs_dir)]
        raise BadInput(f"there is no run {name!r} in {runs_dir}{nearest(name, known)}")
    return path


def list_runs(runs_dir: str) -> list[Path]:
    """Return the run directories, oldest first."""
    root = Path(runs_dir)
    if root.exists() and not root.is_dir():
        raise BadInput(f"runs_dir: {root} is no folder")
    found = [p for p in root.iterdir() if (p / "config.yaml").is_file()] if root.is_dir() else []
    return sorted(found, key=lambda p: ((p / "config.yaml").stat().st_mtime, p.name))


def summary_of(path: Path) -> dict[str, Any]:
    """Return a run's summary: that of its last end, or what is known while it runs.

    Raises `BadInput` for a record that no run writes.
    """
    lines = _checked(path / METRICS, step=int)
    events = _checked(path / EVENTS, step=int, event=str)
    steps = max((x["step"] for x in lines if "loss" in x), default=0)
    summary: dict[str, Any] = {"status": "unfinished", "steps": steps}
    for event in events:
        if event["event"] == "end":
            ended = {k: v for k, v in event.items() if k not in ("event", "step")}
            summary = {"status": "unknown", "steps": steps, **ended}
        elif event["event"] == "resume":
            summary = {"status": "unfinished", "steps": steps}
    return {"name": path.name, **summary}


def _checked(path: Path, **keys: type) -> list[dict[str, Any]]:
    """Read a file whose lines must have ``keys``."""
    lines = read_lines(path)
    for line in lines:
        for key, kind in keys.items():
            if not isinstance(line.get(key), kind):
                shown = json.dumps(to_json(line))
                raise BadInput(f"{path}: {shown:.60} is no line of a run: {key} is missing")
    return lines


def write_configuration(directory: RunDirectory, config: TrainConfig) -> None:
    """Write config.yaml: resolved, the command that repeats this run."""
    head = "# Repeats this run: altcore train --config config.yaml\n"
    plain = {**config.to_plain(), "name": None}
    directory.write("config.yaml", head + yaml.safe_dump(plain, sort_keys=False))


def environment(device: torch.device, plugins: Mapping[str, str]) -> dict[str, Any]:
    """Return versions, plugin distributions, device and git state."""
    from importlib.metadata import version

    libraries = ("torch", "pluggy", "click", "attrs", "cattrs", "structlog", "PyYAML")
    return {
        "altcore": version("altcore"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {name: version(name) for name in libraries},
        "distributions": sorted({e.origin for e in entries()}),
        "plugins": dict(plugins),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "command": sys.argv,
        "git": _git(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _git() -> dict[str, Any] | None:
    def ask(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    commit = ask("rev-parse", "HEAD")
    return {"commit": commit, "dirty": bool(ask("status", "--porcelain"))} if commit else None


@define(eq=False)
class Line:
    """A recorded step's line of metrics, and its measures that are still on the device."""

    values: dict[str, Any]
    measures: dict[str, Any] = field(factory=dict)


@define(eq=False)
class Recorder:
    """Makes lines of metrics from host values and measures that stay on the device.

    What is measured after the optimizer is read together with the next step's one host read, so
    that a line costs no read of its own: it is complete one step later, or at `flush`.
    """

    write: Callable[[dict[str, Any]], None]
    """Told each complete line."""
    previous: Line | None = None
    current: Line | None = None

    def read(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Read device values in one transfer, and what the previous line lacks with them."""
        lacking = self.previous.measures if self.previous else {}
        host = to_host(
            {("now", k): v for k, v in values.items()}
            | {("before", k): v for k, v in lacking.items()}
        )
        if self.previous:
            self.previous.values.update({k: host["before", k] for k in lacking})
            self.previous.measures = {}
        return {k: host["now", k] for k in values}

    def begin(self, line: Mapping[str, Any]) -> None:
        """Begin this step's line with what the host knows."""
        self.current = Line(dict(line))

    def add(self, measures: Mapping[str, Any]) -> None:
        """Add measures that are still on the device to this step's line."""
        if self.current:
            self.current.measures.update(measures)

    def end_step(self) -> None:
        """Hand on the previous line, which is complete by now."""
        if self.previous:
            self.write(self.previous.values)
        self.previous, self.current = self.current, None

    def flush(self) -> None:
        """Read what is outstanding, and hand on every line."""
        for _ in range(2):
            if self.previous and self.previous.measures:
                self.read({})
            self.end_step()


def to_host(values: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return device scalars and short vectors as numbers and lists, in one transfer."""
    tensors = {k: v for k, v in values.items() if isinstance(v, torch.Tensor)}
    if not tensors:
        return dict(values)
    # Those of one type at once: thousands of single conversions would take milliseconds.
    groups: dict[tuple[torch.dtype, bool], list[Any]] = {}
    for key, tensor in tensors.items():
        groups.setdefault((tensor.dtype, tensor.dim() == 0), []).append(key)
    flat = []
    for (_, is_scalar), keys in groups.items():
        own = [tensors[key].detach() for key in keys]
        flat.append((torch.stack(own) if is_scalar else torch.cat(own)).double())
    numbers = iter(torch.cat(flat).tolist())
    host: dict[Any, Any] = {}
    for (dtype, is_scalar), keys in groups.items():
        kind = float if dtype.is_floating_point else int
        for key in keys:
            taken = [kind(next(numbers)) for _ in range(tensors[key].numel())]
            host[key] = taken[0] if is_scalar else taken
    return {k: host.get(k, v) for k, v in values.items()}


RATES = ("stored_stall_rate", "view_stall_rate", "overflow_rate", "flushed_rate")


def summarize(path: Path) -> dict[str, Any]:
    """Return the last training loss of a run and the mean of each rate over its record."""
    lines = [x for x in read_lines(path / METRICS) if "loss" in x]
    last = lines[-1]["loss"] if lines else None
    return {"final_loss": last, **{key: means(lines, key) for key in RATES}}


def means(lines: Iterable[Mapping[str, Any]], key: str) -> float | None:
    """Return the mean of a metric over the lines that have it, or None."""
    found = [x[key] for x in lines if isinstance(x.get(key), int | float)]
    return sum(found) / len(found) if found else None


def fsync_folder(path: Path) -> None:
    """Make a rename in the folder durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
