"""The folder of a loop's checkpoints: one thread of one process saves into it at a time."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from altcore import durable
from altcore.builtin_types import as_builtin
from altcore.errors import BadInput, shown
from altcore.runs.checkpoint import save_checkpoint
from altcore.runs.directory_lock import DirectoryLock, OtherWriter
from altcore.runs.kept import list_checkpoints
from altcore.runs.loop_id import LOOP_ID, loop_id, tell_others
from altcore.runs.manifest import REGULAR, TRAINING, check_no_linked
from altcore.runs.run_id import run_id_of

OWN = ""
"""The run id in a manifest of a loop, which is of no run."""
VALUE = "value"
"""The key of a manifest under which is what checkpoints of a loop are compared by."""


def folder_at(path: str | Path) -> Path:
    """Return an absolute path; raises `BadInput` for one that there cannot be."""
    try:
        folder = Path(path).absolute()
        with suppress(FileNotFoundError):
            folder.lstat()
    except (OSError, TypeError, ValueError) as error:
        problem = error.strerror if isinstance(error, OSError) else error
        raise BadInput(f"{shown(path)} is no folder: {problem}", key="folder") from error
    return folder


class _Turn:
    """Whether a thread saves; the others wait."""

    def __init__(self) -> None:
        self.lock, self.is_taken = threading.RLock(), False


_turn = _Turn()


@contextmanager
def saving_alone(folder: Path) -> Iterator[None]:
    """Let other threads of this process wait until they may save.

    Raises `BadInput` if it is this thread that saves, as in a handler of signals: it would wait for
    itself.
    """
    turn = _turn
    with turn.lock:
        if turn.is_taken:
            problem = f"{folder} is being written by this thread, from within its own save"
            raise BadInput(problem, key="folder")
        turn.is_taken = True
        try:
            yield
        finally:
            turn.is_taken = False


def lock_folder(folder: Path, lock: DirectoryLock | None = None) -> DirectoryLock:
    """Lock a folder, which is made if it is not there, or see to it that its lock still holds.

    Raises:
        OtherWriter: if somebody else saves into it.
        NoSpace: if the disk is full, or can only be read.
        BadInput: if it cannot be locked for another reason.
    """
    try:
        with durable.no_space_named(folder):
            missing = [p for p in (folder, *folder.parents) if not p.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            for made in reversed(missing):
                durable.fsync_folder(made.parent)
            if lock is None:
                return DirectoryLock.take(folder, "another CheckpointManager")
            lock.check(folder)
    except OtherWriter as error:
        error.key, error.hint = "folder", "close() the one that saves, or take a folder of its own"
        raise
    except OSError as error:
        problem = f"{error.filename or folder} cannot be written: {error.strerror}"
        raise BadInput(problem, key="folder") from error
    return lock


def check_loop_folder(folder: Path) -> None:
    """Raise `BadInput` if a folder is none or a run's, or holds what is not a loop's."""
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder} is not a folder", key="folder")
    check_no_linked(folder)
    found = list_checkpoints(folder, strict=False)
    for pointer in ("best", "last"):
        path = folder / pointer
        # A damaged one beside checkpoints is theirs, and is rebuilt: a loss of power leaves zeros.
        is_own = path.is_file() and (
            found or re.fullmatch(r"(step-\d*)?", path.read_text(errors="replace"))
        )
        if os.path.lexists(path) and not is_own:
            problem = f"{path} is not altcore's, and checkpoints need the name"
            raise BadInput(problem, key="folder", hint="take a folder of its own")
    for kept in found:
        if kept.manifest.get("run_id", OWN) != OWN:
            problem = f"{kept.path} is the checkpoint of a run, and not of a loop of your own"
            raise BadInput(problem, key="folder", hint="take a folder of its own")
    for run in (folder, folder.parent):
        if run_id_of(run) is not None:
            where = "is" if run == folder else "is within"
            hint = (
                f"take a folder of its own; altcore.train(resume={run.name!r}) goes on with the "
                f"run, and altcore.load({run.name!r}) loads it"
            )
            problem = f"{folder} {where} the directory of a run, which keeps its own checkpoints"
            raise BadInput(problem, key="folder", hint=hint)


def check_newest(folder: Path, step: int, own: Container[int]) -> None:
    """Raise `BadInput` if the newest checkpoint is later than a step, or not of the ``own`` ones.

    What the loop saves would be removed as older, or follow another's.
    """
    found = list_checkpoints(folder, strict=False)
    newest = max((kept.step for kept in found if kept.kind == REGULAR), default=-1)
    is_own = newest in own
    if newest >= 0 and (newest > step or not is_own):
        whose = "" if is_own else ", which this manager has neither written nor restored"
        there = f"there is a checkpoint of step {newest}{whose}"
        hint = "restore() goes on from it; a new loop takes a folder of its own"
        problem = f"{folder}: {there}, and step {step} is to be saved"
        raise BadInput(problem, key="step", hint=hint)


def comparable(value: float | Tensor | None) -> float | None:
    """Return what checkpoints are compared by as a number of Python's; `BadInput` for no number."""
    if isinstance(value, Tensor) and value.numel() == 1:  # a loss
        value = value.item()
    told = as_builtin(value)
    if told is None:
        return None
    if isinstance(told, bool) or not isinstance(told, int | float):
        raise BadInput(f"a number is needed, not {shown(value)}", key="value")
    try:
        float(told)
    except OverflowError as error:
        raise BadInput("it is too large for a float", key="value") from error
    return told


def save_of_loop(
    model: nn.Module,
    folder: Path,
    kind: str,
    state: Mapping[str, Any],
    value: float | None,
    confirm: Callable[[], None],
) -> Path:
    """Write the checkpoint of the state of a model's loop, and its value; returns its path.

    Checkpoints of other loops in the folder are named. ``confirm`` raises if the state is not what
    it was: then nothing is written.
    """
    step, own = state["step"], loop_id(model, folder)
    tell_others(folder, own)
    manifest = {
        "kind": kind,
        "step": step,
        "phase": TRAINING,
        "evaluation": None if value is None else {"step": step, VALUE: value},
        "snapshots": [],
        "logs": {},
        "identity": {},
        "environment": {},
        "run_id": OWN,
        LOOP_ID: own,
    }
    return save_checkpoint(folder, state, manifest, confirm)


def _begin_anew() -> None:
    global _turn
    _turn = _Turn()  # the thread that has the other one may be the parent's


os.register_at_fork(after_in_child=_begin_anew)
