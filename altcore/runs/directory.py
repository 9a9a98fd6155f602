"""The run directory while a run writes it: creating, locking, appending."""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from attrs import define, field

from altcore.builtin_types import to_json
from altcore.config import TrainConfig
from altcore.errors import BadInput
from altcore.recipes import takes_format
from altcore.runs.durable import no_space_named
from altcore.runs.json_lines import is_torn, read_steps
from altcore.yaml_files import SUFFIXES, dump_yaml

METRICS, EVENTS, TIMINGS = "metrics.jsonl", "events.jsonl", "timings.jsonl"


@define(eq=False)
class RunDirectory:
    """The directory of one run, locked by one process."""

    path: Path
    _lock: IO[str]
    _files: dict[str, IO[str]] = field(factory=dict)

    @classmethod
    def create(cls, config: TrainConfig) -> RunDirectory:
        """Create the directory of a new run.

        A given name must be new, or `BadInput` is raised. Without one, the name is made from the
        label, or from format and recipe.
        """
        root = Path(config.runs_dir)
        try:
            root.mkdir(parents=True, exist_ok=True)
            path = _fresh(root, config) if config.name is None else _named(root, config.name)
        except OSError as error:
            raise BadInput(f"{root} cannot be written: {error.strerror}", key="runs_dir") from error
        return cls._locked(path)

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Lock the directory of an existing run, to resume it."""
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
        """Append a line to a .jsonl file, readable at once."""
        text = json.dumps(to_json(line), allow_nan=False) + "\n"
        with no_space_named(self.path / file, len(text)):
            if file not in self._files:
                torn = is_torn(self.path / file)
                self._files[file] = (self.path / file).open("a", encoding="utf-8")
                # Otherwise the first line after a crash would be lost with the torn one.
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

    def remove(self, file: str) -> None:
        """Remove a file, if it is there."""
        (self.path / file).unlink(missing_ok=True)

    def drop_after(self, step: int) -> None:
        """Drop lines of metrics and timings after ``step``, which a resumed run writes again."""
        for file in (METRICS, TIMINGS):
            kept = [x for x in read_steps(self.path / file) if x["step"] <= step]
            self.write(file, "".join(json.dumps(to_json(x)) + "\n" for x in kept))

    def close(self) -> None:
        """Close the files and release the lock."""
        for file in self._files.values():
            # A full disk was already reported when the line was written.
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
            f"{path} exists; choose another name, or go on with it by --resume {name}",
            key="name",
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
    """Return a text as a run's name, with room for a number; empty if nothing is left.

    >>> as_name("E4M3, mine (2)")
    'E4M3-mine-2'
    """
    return re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-_")[:90]


def _from_recipe(config: TrainConfig) -> str:
    own = config.format is None and not takes_format(config.recipe)
    fmt = [] if own else [config.format.name if config.format else "none"]
    return "-".join(filter(None, [*map(as_name, fmt), recipe_label(config)])).lower()


def recipe_label(config: TrainConfig) -> str:
    """Return the name of a recipe in names of runs and folders."""
    name = config.recipe_name
    return as_name(name.removesuffix(next(filter(name.endswith, SUFFIXES), ""))) or "given"


def write_configuration(directory: RunDirectory, config: TrainConfig) -> None:
    """Write config.yaml, the resolved configuration that repeats this run."""
    head = "# Repeats this run: altcore train --config config.yaml\n"
    plain = {**config.to_plain(), "name": None}
    directory.write("config.yaml", head + dump_yaml(plain))
