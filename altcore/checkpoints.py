"""Checkpoints for your own training loop, as durable and as well digested as those of a run.

A checkpoint is a folder ``step-00000480`` with the files that docs/checkpoints.md describes. It
holds model, gradients, optimizer, quantization and gradient scaler, what else is given, and the
random states of Python, NumPy and torch on every device. Of several processes let one save: the
others go on with random numbers of their own, and a warning says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, Self

import torch
from attrs import define, field
from torch import nn

from altcore.builtin_types import as_builtin
from altcore.engine import (
    AsBuilt,
    LoopWarnings,
    OwnLoop,
    Stateful,
    StepWatch,
    standing_still,
    unkept,
)
from altcore.errors import BadInput, InvalidCheckpoint, LostDirectory, NoSpace, shown
from altcore.log import log
from altcore.quantization import Quantization, bare_model
from altcore.runs import (
    ANOMALY,
    OWN,
    REGULAR,
    VALUE,
    WEIGHTS,
    WEIGHTS_FILE,
    DirectoryLock,
    Kept,
    NoCheckpoint,
    by_merit,
    check_loop_folder,
    check_newest,
    check_no_linked,
    comparable,
    folder_at,
    has_checkpoint,
    is_checkpoint,
    list_checkpoints,
    load_newest,
    lock_folder,
    newest_in,
    of_loop,
    retain,
    save_of_loop,
    saving_alone,
    set_aside,
    take_over,
    tidy,
)
from altcore.runs import load_checkpoint as read_checkpoint

NOT_TO_BE_WRITTEN = BadInput, NoSpace
"""Errors of a folder into which somebody else saves, or that can only be read."""

State = Mapping[str, Any]
Confirm = Callable[[], None]
"""Raises `BadInput` if the loop moved on since it was looked at."""


@contextmanager
def _as_usual() -> Iterator[None]:
    """Make tensors as a training loop does, whatever context the caller is in."""
    with torch.inference_mode(False), torch.device("cpu"):
        yield


@_as_usual()
def save_checkpoint(
    path: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    q: Quantization | None,
    step: int,
    scaler: torch.amp.GradScaler | None = None,
    *,
    value: float | torch.Tensor | None = None,
    also: Mapping[str, Stateful] | None = None,
) -> Path:
    """Write the checkpoint of a step into the folder ``path``; returns the checkpoint's own folder.

    Written whole or not at all; one of the same step is replaced.

    Args:
        path: the folder of the checkpoints, made if it is not there.
        model: may be wrapped in DistributedDataParallel or compiled: the names are those of the
            model within.
        optimizer: whose moments are kept.
        q: what `altcore.quantize_model` returned; None for a model that is not quantized.
        step: after which the state is what it is.
        scaler: of gradients, if the loop has one.
        value: by which `CheckpointManager.best` compares; one that is not finite is never best.
        also: what else the loop keeps, by name: other modules and optimizers, which are held to the
            same as these, and whatever has a ``state_dict`` and a ``load_state_dict``, such as a
            learning-rate scheduler, a sampler or an average.

    Raises:
        BadInput: if a weight, moment or scale is not finite, or another tensor in ``also`` is NaN,
            which is no state to go on from, if an optimizer keeps what a checkpoint cannot or
            moves parameters of no module that is kept, if `load_checkpoint` would refuse the state,
            if the weights change meanwhile, in another thread, if another process or a
            `CheckpointManager` saves into the folder, or if an argument is wrong.
        NoSpace: if the disk is full; what was there stays.
    """
    loop = OwnLoop.of(model, optimizer, q, scaler, also)
    folder, number = folder_at(path), comparable(value)
    with standing_still(loop) as confirm:
        state = loop.state(step)
        if bad := loop.not_finite(state):
            problem = f"{bad} is not finite after step {step}: it is no state to go on from"
            raise BadInput(problem, key="model")
        loop.check_own(state)
        warnings = LoopWarnings()
        warnings.tell([*unkept(loop, state), *loop.hidden(loop.built())])
        finite = warnings.finite(number, state["step"])
        check_loop_folder(folder)
        with saving_alone(folder):
            lock = lock_folder(folder)
            try:
                return save_of_loop(loop.model, folder, REGULAR, state, finite, confirm)
            finally:
                lock.release()


@_as_usual()
def load_checkpoint(
    path: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    q: Quantization | None,
    scaler: torch.amp.GradScaler | None = None,
    *,
    also: Mapping[str, Stateful] | None = None,
) -> int:
    """Restore a checkpoint; returns the step after which it was written.

    All is checked before anything is changed: digests, names, shapes, types, moments and grids. If
    a part does not take its state all the same, each is put back as it was.
    Without an ``optimizer``, for evaluation, the random states stay as they are.

    Args:
        path: a checkpoint, or the folder of several: then the newest valid one, with a warning of
            each that is not.
        model: built as it was then.
        optimizer: likewise; None to leave it and the random states out.
        q: of the same model, in the formats that it had; None if there was none.
        scaler: as given to `save_checkpoint`.
        also: likewise; without an optimizer those of it that are asked for.

    Raises:
        BadInput: if there is no valid checkpoint, or the newest one does not fit what is given:
            another model or optimizer, parameters in other groups, a scaler too many or too few.
        InvalidCheckpoint: if the one that ``path`` names is torn or altered.
    """
    return _restored(folder_at(path), OwnLoop.of(model, optimizer, q, scaler, also))


def _restored(folder: Path, loop: OwnLoop, built: AsBuilt | None = None) -> int:
    """Do what `load_checkpoint` does; warn of hooks that the loop was not ``built`` with."""
    if is_checkpoint(folder):
        found = read_checkpoint(folder)
        if found.kind == WEIGHTS:
            hint = f"torch.load({str(folder / WEIGHTS_FILE)!r})['model'] is the model's state"
            raise BadInput(f"{folder} holds the weights alone", key="path", hint=hint)
        loop.check(found.state or {}, found.kind)
    else:
        check_no_linked(folder.parent if folder.is_symlink() else folder)
        found = load_newest(folder, lambda c: loop.check(c.state or {}, c.kind))
    loop.restore(found.state or {}, built)  # checked
    take_over(loop.model, found.path, found.manifest)
    return found.step


@define(eq=False)
class CheckpointManager:
    """Keeps the checkpoints of one loop: the best and the newest, and the first anomaly.

    From its first save on nobody else saves into the folder, be it another process or another
    manager of this one, until the manager is closed or gone: `close` it, or use it in a ``with``
    statement. Checkpoints that it has neither written nor restored stay.

    >>> model = nn.Linear(2, 2)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> from tempfile import mkdtemp
    >>> manager = CheckpointManager(mkdtemp(), model, optimizer)
    >>> manager.restore()
    0
    >>> manager.save(100, value=2.5).name
    'step-00000100'
    >>> manager.restore()
    100
    """

    folder: Path = field(converter=folder_at)
    """Of the checkpoints; the same one wherever the process goes."""
    model: nn.Module
    optimizer: torch.optim.Optimizer
    q: Quantization | None = None
    scaler: torch.amp.GradScaler | None = None
    max_checkpoints: int = field(default=3, kw_only=True)
    """Checkpoints that stay: the newest, and the best one; of 1 the newest, as `best` is."""
    keep_best: int = field(default=1, kw_only=True)
    """Of the next best ones the weights alone stay, which no loop goes on from."""
    mode: str = field(default="min", kw_only=True)
    """What the best value is: min or max."""
    also: Mapping[str, Stateful] = field(factory=dict, kw_only=True)
    """What else the loop keeps, by name, such as ``{"scheduler": scheduler}``."""
    _lock: DirectoryLock | None = field(init=False, default=None)
    _own: set[int] = field(init=False, factory=set)
    """The steps of the checkpoints that it wrote or restored."""
    _unwatched: frozenset[str] = field(init=False)
    """What was not finite when the manager was made, before training: a mask may be so."""
    _built: AsBuilt = field(init=False)
    """Modules and optimizers as they were then."""
    _steps: StepWatch = field(init=False)
    _warnings: LoopWarnings = field(init=False, factory=LoopWarnings)

    def __attrs_post_init__(self) -> None:
        if self.mode not in ("min", "max"):
            raise BadInput(f"min or max is needed, not {shown(self.mode)}", key="mode")
        for key, least in (("max_checkpoints", 1), ("keep_best", 0)):
            count = as_builtin(getattr(self, key))
            if type(count) is not int or count < least:
                problem = f"a whole number of at least {least} is needed, not {shown(count)}"
                raise BadInput(problem, key=key)
        loop = self._loop()
        self._unwatched, self._built = loop.unwatched(), loop.built()
        self._steps = StepWatch(loop)
        check_loop_folder(self.folder)
        if self.folder.exists():
            with suppress(*NOT_TO_BE_WRITTEN), self._writing(is_to_stay=False):
                tidy(self.folder)  # otherwise who saves there does

    @_as_usual()
    def save(self, step: int, value: float | torch.Tensor | None = None) -> Path | None:
        """Write the checkpoint of a step, and remove those that need not stay.

        ``value`` is what `best` compares by. A state that is not finite is kept by
        `save_on_anomaly` instead, with a warning that names the first; the result is then its own.

        Raises `BadInput` if the newest checkpoint in the folder is of a later step, or one that the
        manager has neither written nor restored, as of an earlier loop; if the folder has files of
        somebody else by the names ``best`` and ``last``; and whatever `save_checkpoint` raises.
        """
        self._check_place()
        loop, number = self._loop(), comparable(value)
        with standing_still(loop) as confirm:
            state = loop.state(step, self._built)
            check_loop_folder(self.folder)
            with self._writing():
                return self._write(loop, state, number, confirm)

    @_as_usual()
    def save_on_anomaly(self, step: int) -> Path | None:
        """Keep the state of the first anomaly, to be looked at; None for later ones.

        It and the last checkpoint before it stay, and nothing goes on from it by itself.
        """
        self._check_place()
        loop = self._loop()
        with standing_still(loop) as confirm:
            state = loop.state(step, self._built)
            check_loop_folder(self.folder)
            with self._writing():
                return self._write_anomaly(loop, state, confirm)

    @_as_usual()
    def latest(self) -> Path | None:
        """Return the newest checkpoint whose files are whole; None if there is none."""
        with suppress(NoCheckpoint):
            return newest_in(self.folder)
        return None

    @_as_usual()
    def best(self) -> Path | None:
        """Return the best checkpoint of the loop to go on from, by the values given; None without.

        If ``max_checkpoints`` is 1, that is the newest, and ``weights-...`` may be better.
        """
        valued = [kept for kept in self._regular() if kept.manifest["evaluation"]]
        for kept in by_merit(valued, VALUE, self.mode):
            try:
                return read_checkpoint(kept.path).path
            except InvalidCheckpoint as error:
                if not is_checkpoint(kept.path):  # who saves removed it
                    return self.best()
                log.warning("the next best checkpoint is taken", error=str(error))
        return None

    @_as_usual()
    def restore(self) -> int:
        """Go on from the newest valid checkpoint; returns its step, 0 if there is none yet.

        Later ones, which are damaged, are renamed to ``damaged_...``, unless somebody else saves
        into the folder, or it can only be read. Raises `BadInput` if there are checkpoints, and
        none is valid, and whatever `load_checkpoint` raises.
        """
        self._check_place()
        check_no_linked(self.folder)
        if not has_checkpoint(self.folder):
            return 0
        step = _restored(self.folder, self._loop(), self._built)
        self._steps.begin(step)
        self._own |= {kept.step for kept in self._regular() if kept.step <= step}
        with suppress(*NOT_TO_BE_WRITTEN), self._writing(is_to_stay=False):
            set_aside(self.folder, step, OWN)
        return step

    def close(self) -> None:
        """Let others save into the folder, and watch no steps; the next save does both again."""
        self._steps.close()
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Self:
        """Return the manager."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def __reduce_ex__(self, _: object) -> NoReturn:
        """Refuse to be copied or pickled: a copy of the model is another loop's."""
        problem = "a CheckpointManager cannot be copied or pickled: it has the folder of one loop"
        hint = "make one for the copied model, with a folder of its own"
        raise BadInput(problem, key="folder", hint=hint)

    def _check_place(self) -> None:
        if self._lock is not None:
            try:
                self._lock.check_place(self.folder)
            except LostDirectory as lost:
                problem = f"{self.folder} was moved or removed while its checkpoints were saved"
                hint = "put it back, or make a new manager"
                raise BadInput(problem, key="folder", hint=hint) from lost

    @contextmanager
    def _writing(self, *, is_to_stay: bool = True) -> Iterator[None]:
        """Write the folder alone; raises `OtherWriter` if somebody else saves into it."""
        with saving_alone(self.folder):
            is_new = self._lock is None
            self._lock = lock_folder(self.folder, self._lock)
            try:
                yield
            finally:
                if is_new and not is_to_stay:
                    self._release()

    def _write(
        self, loop: OwnLoop, state: State, value: float | None, confirm: Confirm
    ) -> Path | None:
        step = state["step"]
        check_newest(self.folder, step, self._own)
        if bad := loop.not_finite(state, self._unwatched):
            problem = "the state is not finite: no checkpoint to go on from"
            log.warning(problem, first=bad, step=step)
            return self._write_anomaly(loop, state, confirm)
        loop.check_own(state, self._built)
        self._warnings.tell([*self._steps.hidden(loop, state), *loop.hidden(self._built)])
        finite = self._warnings.finite(value, step)
        path = save_of_loop(loop.model, self.folder, REGULAR, state, finite, confirm)
        self._own.add(step)
        retain(
            self.folder,
            monitor=VALUE,
            mode=self.mode,
            max_checkpoints=self.max_checkpoints,
            keep_best=self.keep_best,
            own=self._own,
        )
        return path

    def _write_anomaly(self, loop: OwnLoop, state: State, confirm: Confirm) -> Path | None:
        found = list_checkpoints(self.folder, strict=False)
        if any(kept.kind == ANOMALY for kept in found):
            return None
        return save_of_loop(loop.model, self.folder, ANOMALY, state, None, confirm)

    def _regular(self) -> list[Kept]:
        return of_loop(bare_model(self.model), self.folder)

    def _loop(self) -> OwnLoop:
        return OwnLoop.of(self.model, self.optimizer, self.q, self.scaler, self.also)
