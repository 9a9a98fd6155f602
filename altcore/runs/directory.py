"""The run directory while a run writes it: creating, locking, appending."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from attrs import define, field

from altcore import durable
from altcore.builtin_types import printable, to_json
from altcore.config import TrainConfig
from altcore.errors import BadInput, LostRecord, UnreadableFile
from altcore.log import log
from altcore.run_files import (
    CHECKPOINTS,
    CONFIG,
    ENVIRONMENT,
    FILES,
    FOLDERS,
    HELD,
    LOCK,
    LOGS,
    METRICS,
    REPORTS,
    TIMINGS,
)
from altcore.runs.directory_lock import DirectoryLock
from altcore.runs.held_file import HeldFile, keep_damaged
from altcore.runs.log_file import LogFile
from altcore.runs.manifest import regular_in
from altcore.runs.naming import name_of, numbered
from altcore.runs.run_id import new_run_id, run_id_of
from altcore.yaml_files import dump_yaml

ENCODER = json.JSONEncoder(allow_nan=False)
"""Of lines: `json.dumps` would make one for each."""


@define(eq=False)
class RunDirectory:
    """The directory of one run, locked by one process."""

    is_written: ClassVar[bool] = True
    """Whether this process writes it."""

    path: Path
    """Absolute: a plugin may change the working directory."""
    _lock: DirectoryLock | None
    _logs: dict[str, LogFile] = field(factory=dict)
    _held: dict[str, HeldFile] = field(init=False, factory=dict)
    _durable_logs: int = field(init=False, default=0)
    """How many of them had their names on the disk when they were last synced."""
    _run_id: str | None = None
    _harmed: dict[str, str] = field(init=False, factory=dict)
    """What is wrong with .jsonl files, and is told between two steps, where the state is whole."""
    _harmed_by: str | None = field(init=False, default=None)
    """Who did that: empty if it was no plugin, None if nothing is harmed."""

    @classmethod
    def create(cls, config: TrainConfig, root: Path) -> RunDirectory:
        """Create the directory of a new run in ``root``, which is absolute.

        A given name must be new, or that of a run that ended before its first checkpoint and so
        begins anew; otherwise `BadInput` is raised. Without one, the name is made from the label,
        or from format and recipe.
        """
        try:
            with durable.no_space_named(root):
                root.mkdir(parents=True, exist_ok=True)
                made = cls._new(root, config)
                durable.fsync_folder(root)  # or a loss of power takes the whole run
                return made
        except OSError as error:
            raise BadInput(f"{root} cannot be written: {error.strerror}", key="runs_dir") from error

    @classmethod
    def _new(cls, root: Path, config: TrainConfig) -> RunDirectory:
        if config.name is None:
            return cls.open(_fresh(root, config))
        return cls._named(root / config.name)

    @classmethod
    def _named(cls, path: Path) -> RunDirectory:
        try:
            durable.make_folder(path)
            return cls.open(path)
        except FileExistsError:
            if not _began_nothing(path):
                raise _exists(path) from None
        directory = cls.open(path)
        try:
            if not _began_nothing(path):  # another process was at it until now
                raise _exists(path)
            log.info("run begins anew: it had ended before its first checkpoint", run=path.name)
            for entry in path.iterdir():
                if entry.name != LOCK:
                    durable.remove(entry)
            directory._make_folders()
        except (BadInput, OSError):
            directory.close()
            raise
        return directory

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Lock the directory of an existing run.

        Raises `BadInput` if a part of it is a link, no file or folder where it has to be one, or
        of another user who lets this one not read and write it.
        """
        path = path.absolute()
        with durable.unreadable_named(path):
            durable.check_no_links(path / name for name in (*FOLDERS, *FILES))
            durable.check_no_links((path / CHECKPOINTS).glob("*"))
            durable.check_kinds(path, files=FILES, folders=FOLDERS)
        durable.check_permissions(path, files=FILES, folders=FOLDERS)
        with durable.no_space_named(path):
            lock = DirectoryLock.take(path, "another run")
        directory = cls(path, lock)
        try:
            directory._hold(HELD)
            directory._make_folders()
        except (OSError, UnreadableFile):
            directory.close()
            raise
        return directory

    def _make_folders(self) -> None:
        for folder in (self.checkpoints, self.path / REPORTS):
            if not folder.is_dir():
                durable.make_folder(folder)

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def run_id(self) -> str:
        """The id of the run; a new one is drawn if the directory tells of none."""
        self._run_id = self._run_id or run_id_of(self.path) or new_run_id()
        return self._run_id

    @property
    def environment(self) -> dict[str, Any]:
        """What environment.json holds, as this process found or wrote it; empty if it did not."""
        held = self._held.get(ENVIRONMENT)
        with suppress(ValueError, RecursionError):
            found = json.loads(held.data if held else b"{}")
            return found if isinstance(found, dict) else {}
        return {}

    def check_begun(self) -> None:
        """Raise `BadInput` if there is no checkpoint, and say whether there ever was one."""
        if _has_checkpoints(self.path):
            return
        hint = "they are gone, the records stay: train anew under another --name"
        if _began_nothing(self.path):
            hint = "it ended before its first one: begin it anew under its --name"
        raise BadInput(f"there is no checkpoint in {self.checkpoints}", hint=hint)

    def _hold(self, files: Iterable[str]) -> None:
        for file in files:
            held = HeldFile.of(self.path / file)
            self._held |= {} if held is None else {file: held}

    def check_in_place(self) -> None:
        """Raise an error if the directory or a part of it is not as this process left it.

        Raises:
            LostDirectory: if the path does not lead to the directory that was opened.
            BadInput: if another process writes it, or a part of it is a link by now.
        """
        if self._lock is not None:
            self._lock.check(self.path)
            durable.check_no_links(self.path / name for name in (*FOLDERS, *FILES))

    def put_back(self) -> list[str]:
        """Write files anew that other code changed, where it is known what they held.

        Returns what was done: nothing of it is lost.
        """
        done = [log.put_back() for log in self._logs.values()]
        done += [held.put_back(self.path / file) for file, held in self._held.items()]
        return [*filter(None, done)]

    def check_logs(self) -> None:
        """Raise `LostRecord` if other code changed a .jsonl file otherwise, and go on with it.

        What the next checkpoint records of it is what was written, so that a resume finds what is
        lost.
        """
        for file, held in self._logs.items():
            if problem := held.problem:
                self._harmed.setdefault(file, problem)
                held.go_on()
        self._tell_harmed()

    def _tell_harmed(self) -> None:
        if not self._harmed:
            return
        found: dict[str, list[str]] = {}
        while self._harmed:
            file, problem = self._harmed.popitem()
            found.setdefault(problem, []).append(str(self.path / file))
        told = "; ".join(f"{', '.join(files)} {problem}" for problem, files in found.items())
        by, self._harmed_by = self._harmed_by or "", None
        raise LostRecord(f"the run's record is damaged: {told}{by}")

    def note_harm(self, who: object, doing: str) -> None:
        """Note whose code ran when the record was closed or written to: the error says it.

        Called before each call of a plugin, of nobody's code, and after it, so it looks no further
        than at the length.
        """
        for file in self._logs.values():
            if self._harmed_by is None and not file.has_its_length:
                self._harmed_by = f", in {doing} of {who}" if who else ""

    def follow(self, path: Path) -> None:
        """Be where the directory was moved to."""
        self.path = path
        for file, held in self._logs.items():
            held.path = path / file

    def begin_anew(self, name: str) -> list[str]:
        """Be another directory from now on, a new one beside the one that is lost.

        Its record is written there, but for .jsonl files of which lines are lost: returns these.
        """
        other = self.open(numbered(self.path.parent, name))
        logs, self._logs = self._logs, {}
        self.close()
        self._lock, self._logs = other._lock, logs
        self.follow(other.path)
        self.put_back()
        lost = [file for file, log in logs.items() if not (self.path / file).exists()]
        for file in lost:
            self._logs.pop(file).close()
        return lost

    def append(self, file: str, line: Mapping[str, Any]) -> None:
        """Append a line to a .jsonl file, readable at once."""
        text = ENCODER.encode(to_json(line)) + "\n"
        self._log(file).append(text.encode())

    def _log(self, file: str) -> LogFile:
        """Return a .jsonl file; one that other code closed is opened again, and told of later."""
        held = self._logs.get(file)
        try:
            if held is None:
                held = self._logs[file] = LogFile.open(self.path / file)
            elif not held.is_open:
                self._harmed[file] = "was closed by other code in this process"
                held.go_on()
        except OSError:
            self._tell_harmed()  # a lost directory is why, and the error says so
            raise
        return held

    def open_logs(self) -> None:
        """Have the .jsonl files open: what is appended stays if the directory is moved away."""
        for file in LOGS:
            self._log(file)

    def sync_logs(self) -> dict[str, dict[str, Any]]:
        """Make the .jsonl files durable; returns length and hash of each that exists."""
        found = {f: self._log(f).sync() for f in LOGS if (self.path / f).exists()}
        if len(found) > self._durable_logs:  # a file whose name is lost is lost
            durable.fsync_folder(self.path)
            self._durable_logs = len(found)
        return found

    def records(self) -> dict[str, dict[str, Any]]:
        """Return length and hash of each file as this process wrote it, for the summary."""
        logs = {f: self._log(f).recorded for f in LOGS if (self.path / f).exists()}
        return logs | self.held_records()

    def held_records(self) -> dict[str, dict[str, Any]]:
        """Return length and hash of the files that stay as they are while a run trains."""
        return {file: held.recorded for file, held in self._held.items()}

    def cut_logs(self, recorded: Mapping[str, Mapping[str, Any]], step: int) -> list[str]:
        """Cut the .jsonl files to what `sync_logs` returned after a step: the rest is done again.

        Returns those of which lines were changed or lost.
        """
        altered = []
        for file in LOGS:
            if file in recorded:
                altered += [] if self._log(file).cut(recorded[file], step) else [file]
            elif (self.path / file).exists():
                durable.remove(self.path / file)
        return altered

    def write(self, file: str, text: str) -> None:
        """Write a whole file, replacing it at once or not at all."""
        durable.replace_file(self.path / file, text.encode())
        durable.fsync_folder(self.path)
        self._hold({file} & {*HELD})

    def write_json(self, file: str, data: Mapping[str, Any]) -> None:
        """Write a whole .json file."""
        self.write(file, json.dumps(to_json(data), indent=1) + "\n")

    def keep_damaged(self, file: str) -> None:
        """Put a file that is to be written anew aside, as FILE.damaged."""
        keep_damaged(self.path / file)

    def remove(self, file: str) -> None:
        """Remove a file, if it is there."""
        durable.remove(self.path / file)

    def close(self) -> None:
        """Close the files and release the lock."""
        for file in self._logs.values():
            # A full disk was already reported when the line was written.
            with suppress(OSError):
                file.close()
        self._logs.clear()
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def _began_nothing(path: Path) -> bool:
    """Whether a folder holds nothing but what a run writes before its first checkpoint."""
    if path.is_symlink() or not path.is_dir():
        return False
    names = {entry.name for entry in path.iterdir() if not entry.name.endswith(".tmp")}
    known = {*FOLDERS, *FILES}
    steps = [path / METRICS, path / TIMINGS]
    return (
        names <= known
        and not any(file.exists() and file.stat().st_size for file in steps)
        and all(p.name.endswith(".tmp") for p in (path / CHECKPOINTS).glob("*-*"))
    )


def _has_checkpoints(path: Path) -> bool:
    return bool(regular_in(path / CHECKPOINTS))


def _exists(path: Path) -> BadInput:
    if not _has_checkpoints(path):
        problem = f"{path} exists, with no checkpoint to go on from; choose another name"
        return BadInput(problem, key="name")
    return BadInput(
        f"{path} exists; choose another name, or go on with it by --resume {path.name}",
        key="name",
    )


def _fresh(root: Path, config: TrainConfig) -> Path:
    return numbered(root, name_of(config))


def write_configuration(directory: RunDirectory, config: TrainConfig) -> None:
    """Write config.yaml, the resolved configuration that repeats this run.

    Its first line says what it does not repeat: that something was another before some step.
    """
    changed = ", ".join(f"{c['what']} after step {c['step']}" for c in config.changes)
    told = " ".join(printable(changed).split())  # a comment is one line
    but = f" but for what changed on the way ({told})" if told else ""
    head = f"# Repeats this run{but}: altcore train --config config.yaml\n"
    plain = {**config.to_plain(), "name": None}
    directory.write(CONFIG, head + dump_yaml(plain))
