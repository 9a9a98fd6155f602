"""Whether what a loop saves is what it trains with: optimizers and schedulers, moved weights."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from types import FrameType
from typing import Any
from weakref import WeakSet, finalize, ref

import torch
from attrs import frozen
from torch.amp import GradScaler
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from altcore.engine.fingerprints import Fingerprint, fingerprint, memory
from altcore.engine.hidden_state import reached, tensors_in
from altcore.engine.labels import parameter_names
from altcore.engine.own_loop import OwnLoop
from altcore.engine.own_schedulers import SchedulerWatch
from altcore.log import log
from altcore.recipes import some

UNKNOWN = "the optimizer that moves the weights: it is not the manager's"
UNSCALED = "a GradScaler that steps the optimizer: pass it in as scaler"
TURNS = 3
"""Turns after which an optimizer is a part of the loop: two loops may follow one another."""
FRAMES = 12
"""From a hook of an optimizer to its caller: wrappers of torch's and of schedulers are between."""
KEEP = "name it in also"
KEEP_OR_REMAKE = f"{KEEP}, or make a new manager if it took the place of the manager's"
APART = "{} parameters that no module of the loop has: name both in also"
"""Of an optimizer that steps whenever the manager's does, as that of a discriminator."""
HALF = "saved within a step of {}, or after one that an exception ended: it may be half of a step"
STALE = "neither the weights nor the gradients of the manager's model changed since the last save"


_kept: WeakSet[torch.optim.Optimizer] = WeakSet()
"""The optimizers that managers of this process keep: of several loops that train in turn."""


@frozen
class _Sight:
    """What a model and its optimizer were when they were looked at."""

    steps: int
    """That the optimizer had made."""
    version: int
    """Of all weights: each change in place counts it up."""
    numbers: Fingerprint
    """Of the first elements of each weight and its gradient: a captured graph counts nothing up."""


class StepWatch:
    """Sees the steps of every optimizer, and weights that move without one.

    Its hooks go with it, or when it is closed; the next question begins anew.
    """

    def __init__(self, loop: OwnLoop) -> None:
        self._model, self._optimizer, self._steps = loop.model, loop.optimizer, _Steps()
        self._steps.own, self._schedulers = id(self._optimizer), SchedulerWatch()
        self._hook: finalize[..., Any] | None = None
        _kept.update(kept.optimizer for kept in loop.optimizers)
        self.begin()

    def begin(self, step: int | None = None) -> None:
        """Watch from now on; the state is that after ``step``, if it is known."""
        if self._hook is None:
            hooks = ExitStack()
            hooks.callback(register_optimizer_step_pre_hook(self._steps.begin).remove)
            hooks.callback(register_optimizer_step_post_hook(self._steps).remove)
            self._hook = finalize(self, hooks.close)
        self._steps.within.clear()
        self._step, self._before, self._is_stale = step, self._now(), False

    def _now(self) -> _Sight:
        weights = [p for p in self._model.parameters() if not (is_lazy(p) or p.is_inference())]
        seen = [x for p in weights for x in (p, p.grad) if x is not None and memory(x)]
        numbers = fingerprint([x.detach().reshape(-1)[:16] for x in seen])
        return _Sight(self._steps.made, sum(p._version for p in weights), numbers)

    def hidden(self, loop: OwnLoop, state: Mapping[str, Any]) -> list[str]:
        """Name what trains a loop and is not in its ``state``: optimizers, and their schedulers.

        Warns, once, if nothing moved the weights since another step was saved.
        """
        if self._hook is None:
            self.begin()
        step, before, now = self._step, self._before, self._now()
        self._step, self._before = state["step"], now
        self._warn_if_stale(step, is_same=before == now and _is_trained(loop))
        _kept.update(kept.optimizer for kept in loop.optimizers)
        within = self._steps.within
        if half := [kept.optimizer for kept in loop.optimizers if kept.optimizer in within]:
            hint = "save between two steps: a signal's handler can ask the loop to; after an "
            hint += "exception restore the checkpoint before"
            names = some([type(optimizer).__name__ for optimizer in half])
            log.warning(HALF.format(names), step=self._step, hint=hint)
        others = _not_kept(loop, state, self._steps.others(), KEEP_OR_REMAKE)
        others += _apart(loop, self._steps.in_turn())
        if not others and before.version != now.version and before.steps == now.steps:
            others = [UNKNOWN]
        scaler = self._steps.scaler()
        if scaler is not None and id(scaler) not in reached([loop.scaler, *loop.also.values()]):
            others.append(UNSCALED)
        return [*others, *self._schedulers.unkept(loop)]

    def _warn_if_stale(self, before: int | None, *, is_same: bool) -> None:
        is_stale = is_same and before not in (None, self._step)
        if is_stale and not self._is_stale:
            hint = "if the code that makes the model ran again, make the manager again, too"
            log.warning(STALE, steps=[before, self._step], hint=hint)
        self._is_stale = is_stale

    def close(self) -> None:
        """Remove the hooks."""
        if self._hook is not None:
            self._hook()
            self._hook = None


class _Steps:
    """A hook of every optimizer: it counts the steps of one and knows the others, which may go."""

    def __init__(self) -> None:
        self.own, self.made = 0, 0
        self._seen: dict[int, ref[torch.optim.Optimizer]] = {}
        self._turns: dict[int, set[int]] = {}
        """The first counts of own steps after which each of the others made one."""
        self.scaler: Callable[[], GradScaler | None] = lambda: None
        self.within: WeakSet[torch.optim.Optimizer] = WeakSet()
        """Optimizers whose step began and did not end."""

    def begin(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Look at one before its step."""
        self.within.add(optimizer)

    def __call__(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Look at one after its step."""
        self.within.discard(optimizer)
        key = id(optimizer)
        if key == self.own:
            self.made += 1
            if (scaler := _caller_of_step()) is not None:
                self.scaler = ref(scaler)
            return
        if key not in self._seen or self._seen[key]() is not optimizer:
            self._seen[key], self._turns[key] = ref(optimizer), set()
        if len(turns := self._turns[key]) < TURNS:
            turns.add(self.made)

    def others(self) -> list[torch.optim.Optimizer]:
        """Return the others that are still there."""
        return [made for known in [*self._seen.values()] if (made := known()) is not None]

    def in_turn(self) -> list[torch.optim.Optimizer]:
        """Return the others that step again and again between the own steps of one."""
        return [x for x in self.others() if len(self._turns[id(x)]) == TURNS]


def _caller_of_step() -> GradScaler | None:
    """Return the scaler of gradients that makes the step after which this is called."""
    frame: FrameType | None = sys._getframe()
    for _ in range(FRAMES):
        if frame is not None and frame.f_code is GradScaler.step.__code__:
            scaler: GradScaler = frame.f_locals["self"]
            return scaler if scaler.is_enabled() else None
        frame = frame and frame.f_back
    return None


def unkept(loop: OwnLoop, state: Mapping[str, Any]) -> list[str]:
    """Name what trains a loop and is not in its ``state``: optimizers, and their schedulers.

    To look through all objects of this process takes a tenth of a second.
    """
    kind = torch.optim.Optimizer  # an object's own idea of its class would be code of others
    made = [x for x in gc.get_objects() if issubclass(type(x), kind) and x.state]
    return [*_not_kept(loop, state, made), *SchedulerWatch().unkept(loop)]


def _not_kept(
    loop: OwnLoop,
    state: Mapping[str, Any],
    optimizers: Iterable[torch.optim.Optimizer],
    remedy: str = KEEP,
) -> list[str]:
    """Name those of the optimizers that have weights of the loop, and are not in the state.

    An optimizer within another one, or within what ``also`` names, is in the state if its moments
    are.
    """
    names = parameter_names({kept.label: kept.module for kept in loop.modules})
    kept = {id(x) for x in (loop.optimizer, *vars(loop.optimizer).values(), *loop.also.values())}
    found = {}
    for other in optimizers:
        moved = [names[id(p)] for g in other.param_groups for p in g["params"] if id(p) in names]
        if moved and id(other) not in kept:
            found[f"the optimizer {type(other).__name__} of {some(moved)}: {remedy}"] = other
    if not found:
        return []
    stated = {memory(x) for x in tensors_in([state["optimizer"], state["also"]], depth=12)}
    moments = {name: _moments(other) for name, other in found.items()}
    return [name for name, own in moments.items() if not own or own - stated]


def _apart(loop: OwnLoop, optimizers: Iterable[torch.optim.Optimizer]) -> list[str]:
    """Name those of the optimizers that have no weight of the loop, and that no loop keeps."""
    names = parameter_names({kept.label: kept.module for kept in loop.modules})
    held = reached([*loop.also.values(), *vars(loop.optimizer).values()])
    found = []
    for other in optimizers:
        moved = {id(p) for group in other.param_groups for p in group["params"]}
        if not (moved & names.keys() or other in _kept or id(other) in held):
            found.append(f"the optimizer {type(other).__name__} of {APART.format(len(moved))}")
    return found


def _moments(optimizer: torch.optim.Optimizer) -> set[int]:
    return {memory(x) for x in tensors_in([*optimizer.state.values()])} - {0}


def _is_trained(loop: OwnLoop) -> bool:
    return any(p.requires_grad for p in loop.model.parameters())
