"""The state of a training loop of your own: what its checkpoints hold, checked and restored.

The model and the optimizer that the loop is given are held to the same as those that ``also``
names: what a checkpoint has of a module is in `KeptModule`, and of an optimizer in `KeptOptimizer`.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from altcore.builtin_types import as_builtin
from altcore.engine.arithmetic import platform_on
from altcore.engine.as_built import AsBuilt
from altcore.engine.hidden_state import HOOKS, tensors_in
from altcore.engine.kept_module import KeptModule
from altcore.engine.kept_optimizer import KeptOptimizer
from altcore.engine.labels import MODEL, OPTIMIZER, SCALER, Kept, parameter_names
from altcore.engine.model_state import without_memory
from altcore.engine.module_hooks import warn_of_other_hooks
from altcore.engine.own_ranks import put_random_state
from altcore.engine.randomness import random_state
from altcore.engine.shared_memory import overlapping, shared_as, shared_in
from altcore.engine.state_checks import check_ties, fitting, readable
from altcore.engine.state_tensors import left_on_cpu, placed_states
from altcore.engine.stateful import KeptObject, Stateful, check_fits
from altcore.errors import BadInput, InvalidCheckpoint, described, shown
from altcore.log import log
from altcore.quantization import (
    OffGrid,
    Quantization,
    bare_model,
    check_moments,
    is_quantized,
    this_rank,
)
from altcore.runs import REGULAR, about_platform, check_readable, compare

ALSO = "also."
STORE = "call q.store(optimizer) after each step, or q.follow(optimizer) once for each optimizer"
Part = KeptModule | KeptOptimizer | KeptObject


@frozen(eq=False)
class OwnLoop:
    """What a checkpoint holds the state of."""

    model: nn.Module
    """Not wrapped."""
    optimizer: torch.optim.Optimizer | None
    """None of a loop that only evaluates."""
    scaler: torch.amp.GradScaler | None
    """None if it is disabled: it has no state."""
    also: Mapping[str, Stateful]
    """What else the loop keeps, by name; modules are not wrapped."""
    modules: Sequence[KeptModule]
    """The model, and those in ``also``."""
    optimizers: Sequence[KeptOptimizer]
    objects: Sequence[KeptObject]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        q: Quantization | None,
        scaler: torch.amp.GradScaler | None,
        also: Mapping[str, Stateful] | None,
    ) -> OwnLoop:
        """Take modules out of their wrappers; `BadInput` if ``q`` is not of the model."""
        if not isinstance(model, nn.Module):
            raise BadInput(f"a torch.nn.Module is needed, not {shown(model)}", key="model")
        if not isinstance(also, Mapping | None):
            problem = f"a mapping of names to what has a state is needed, not {shown(also)}"
            raise BadInput(problem, key="also")
        own = bare_model(model)
        if q is not None and not hasattr(q, "model"):
            raise BadInput(f"what quantize_model returned is needed, not {shown(q)}", key="q")
        if q is not None and own is not q.model:
            raise BadInput("it is not the model that was quantized", key="q")
        if not isinstance(optimizer, Optimizer | None):
            problem = f"a torch.optim.Optimizer is needed, not {shown(optimizer)}"
            raise BadInput(problem, key="optimizer")
        scaler = scaler if scaler is not None and scaler.is_enabled() else None
        # In one order: a parameter of two modules is called by the first.
        names = [str(name) for name in also or ()]
        if len(set(names)) < len(names):
            raise BadInput(f"two are called the same: {', '.join(sorted(names))}", key="also")
        also = dict(zip(names, (also or {}).values(), strict=True))
        more = {name: _checked(name, also[name]) for name in sorted(also)}
        named = {ALSO + name: part for name, part in more.items()}
        parts = {MODEL: own, OPTIMIZER: optimizer, SCALER: scaler, **named}
        quantizations = [x for x in (q, *more.values()) if isinstance(x, Quantization)]
        modules = {
            label: x.model if isinstance(x, Quantization) else x
            for label, x in parts.items()
            if isinstance(x, nn.Module | Quantization)
        }
        for label, module in modules.items():
            if problem := without_memory(module):
                raise BadInput(problem, key=label.removeprefix("the "))
        labels = parameter_names(modules)
        return cls(
            own,
            optimizer,
            scaler,
            more,
            [
                KeptModule(label, x, _own_q(label, x, quantizations), labels, optimizer is not None)
                for label, x in modules.items()
            ],
            [KeptOptimizer(n, x, labels) for n, x in parts.items() if isinstance(x, Optimizer)],
            [
                KeptObject(label, x)
                for label, x in parts.items()
                if not isinstance(x, nn.Module | Quantization | Optimizer | None)
            ],
        )

    @property
    def is_trained(self) -> bool:
        """Whether it trains; it may only evaluate."""
        return self.optimizer is not None

    def built(self) -> AsBuilt:
        """Return modules and optimizers as they are now, before training."""
        modules = {kept.label: kept.module for kept in self.modules}
        optimizers = {kept.label: kept.optimizer for kept in self.optimizers}
        return AsBuilt(modules, optimizers, [kept.object for kept in self.objects])

    def hidden(self, built: AsBuilt) -> list[str]:
        """Return where state is that no checkpoint has; the loop was ``built`` so."""
        late = [f"{HOOKS} of {name}" for name in built.hooks.late()]
        return [*built.hidden(), *built.hooks.changed(), *late, *self._shared_moments()]

    def _shared_moments(self) -> list[str]:
        """Return the states of optimizers in the memory of a weight or buffer: they become copies.

        As ``p.detach()`` is, which moves the weight.
        """
        own = chain(*((*x.module.parameters(), *x.module.buffers()) for x in self.modules))
        moments = {
            f"memory of {key} of {kept.names.get(id(p), 'a parameter')}": x
            for kept in self.optimizers
            for p, state in kept.optimizer.state.items()
            for key, x in (state.items() if isinstance(state, Mapping) else ())
            if isinstance(x, Tensor)
        }
        return overlapping(moments, own)

    def unwatched(self) -> frozenset[str]:
        """Return the names of what is not finite now, before training: it may stay so."""
        of_modules = [kept.unwatched() for kept in self.modules]
        return frozenset().union(*of_modules, *(kept.unwatched() for kept in self.objects))

    def not_finite(self, state: Mapping[str, Any], unwatched: Container[str] = ()) -> str | None:
        """Return the name of the first part of a state that is no number to go on from.

        ``unwatched`` is what was not finite before training, if somebody knows.
        """
        found = chain(
            (x.not_finite(_of(x, state), unwatched) for x in self.modules),
            (x.not_finite(_of(x, state)) for x in self.optimizers),
            (x.not_finite(_of(x, state), unwatched) for x in self.objects),
        )
        return next(filter(None, found), None)

    @property
    def device(self) -> torch.device:
        """A GPU if a parameter of a module is there, or the CPU."""
        parameters = (p for kept in self.modules for p in kept.module.parameters())
        elsewhere = (p.device for p in parameters if p.device.type != "cpu")
        return next(elsewhere, torch.device("cpu"))

    def state(self, step: int, built: AsBuilt | None = None) -> dict[str, Any]:
        """Return the state after a step; the loop was ``built`` so, or as it is now."""
        step = as_builtin(step)
        if type(step) is not int or step < 0:
            problem = f"a whole number of at least 0 is needed, not {shown(step)}"
            raise BadInput(problem, key="step")
        for kept in self.modules:
            kept.check_ready()
        states = self._states(built or self.built())
        self._check_stated(states)
        also = {label: x for label, x in states.items() if label.startswith(ALSO)}
        state = {
            "step": step,
            **states[MODEL],
            "shared": shared_in({kept.label: kept.module for kept in self.modules}),
            **({} if built is None else {"known_hooks": built.known_hooks}),
            **states[OPTIMIZER],
            "optimizer_class": type(self.optimizer).__name__,
            "scaler": states.get(SCALER),
            "rank": this_rank(),
            "random": random_state(self.device),
            "platform": platform_on(self.device),
            "also": {label.removeprefix(ALSO): x for label, x in also.items()},
            "also_classes": self._classes(),
            "left_on_cpu": left_on_cpu(
                {x.label: states[x.label] for x in self.objects}, self.device
            ),
        }
        check_readable(state, "")  # before its numbers are asked: of others there may be none
        return state

    def _states(self, built: AsBuilt) -> dict[str, Any]:
        """Return the state of each part, by its label."""
        parts: list[Part] = [*self.modules, *self.optimizers, *self.objects]
        return {kept.label: _state_of(kept, built) for kept in parts}

    def _check_stated(self, states: Mapping[str, Any]) -> None:
        """Raise `BadInput` if a module or an optimizer has what is not in its state."""
        for module in self.modules:
            module.check_stated(states[module.label])
        others = [*tensors_in([states[kept.label] for kept in self.objects], depth=12)]
        for optimizer in self.optimizers:
            optimizer.check_stated(states[optimizer.label], others)

    def _classes(self) -> dict[str, str]:
        return {name: type(part).__name__ for name, part in self.also.items()}

    def _warn_of_hooks(self, state: Mapping[str, Any], built: AsBuilt) -> None:
        """Warn of modules that were built with other hooks than those of a state that was read."""
        for label, was in state.get("known_hooks", {}).items():
            if label in built.known_hooks:
                warn_of_other_hooks(was, built.known_hooks[label], label)

    def check_own(self, state: Mapping[str, Any], built: AsBuilt | None = None) -> None:
        """Raise `BadInput` if a state is not to be written, since the loop could not go on from it.

        The loop would refuse the state, or is in the middle of a step. It was ``built`` so, or as
        it is now.
        """
        for kept in self.objects:
            kept.check_between_steps()
        if built is not None and (lost := built.lost_option()):
            raise BadInput(f"it could not be restored: {lost}", key="optimizer")
        try:
            self.check(state, REGULAR)
        except InvalidCheckpoint as error:
            changed = built.problem() if built is not None else None
            problem = f"it could not be restored: {changed or error}"
            hint = STORE if isinstance(error, OffGrid) and not changed else ""
            raise BadInput(problem, key="model", hint=hint) from error

    def check(self, state: Mapping[str, Any], kind: str) -> None:
        """Check a state of a whole checkpoint before anything is loaded.

        Raises:
            InvalidCheckpoint: if its numbers are no state to go on from.
            BadInput: if it does not fit what was given: an earlier one would fit no better.
        """
        with readable("this loop"):
            self._check_given(state)
            for module in self.modules:
                module.check(_of(module, state))
            is_healthy = self.is_trained and kind == REGULAR
            if is_healthy and (bad := self.not_finite(state, self.unwatched())):
                raise InvalidCheckpoint(f"{bad} is not finite")
            moments = [m for x in self.optimizers for m in x.check(_of(x, state))]
            for module in self.modules if self.is_trained else ():
                if module.q is not None:
                    own = _of(module, state)["quantization"]
                    check_moments(module.q, own, moments)

    def _check_given(self, state: Mapping[str, Any]) -> None:
        """Raise `BadInput` if a state is of other modules, optimizers or recipes."""
        if state["scaler"] is not None and self.scaler is None and self.is_trained:
            raise BadInput("the checkpoint holds a scaler, and none is given", key="scaler")
        if state["scaler"] is None and self.scaler is not None:
            raise BadInput("the checkpoint holds no scaler", key="scaler")
        kept = state["also_classes"]
        if not self.is_trained:  # who evaluates asks for what he needs
            kept = {name: kind for name, kind in kept.items() if name in self.also}
        check_fits(kept, self._classes())
        if self.optimizer is not None:
            with fitting(MODEL.removeprefix("the ")):
                check_ties(state, self.model, self.optimizer)
        for module in self.modules:
            module.check_given(_of(module, state))
        was, is_now = state["optimizer_class"], type(self.optimizer).__name__
        if self.is_trained and was != is_now:
            raise BadInput(f"the checkpoint is of {was}, and it is {is_now}", key="optimizer")

    def restore(self, state: Mapping[str, Any], built: AsBuilt | None = None) -> None:
        """Load a state that was checked; warn of hooks that the loop was not ``built`` with.

        If a part does not take its state, `BadInput`, and all is as it was.
        """
        parts: list[Part] = [*self.objects, *self.modules, *self.optimizers]
        parts.sort(key=lambda kept: not kept.label.startswith(ALSO))
        modules, before = {kept.label: kept.module for kept in self.modules}, {}
        shared = shared_in(modules)
        for kept in parts:
            with suppress(Exception):  # one that has not begun may have no state
                before[kept] = _copied(kept, _state_of(kept, AsBuilt({}, {})))
        try:
            with shared_as(modules, state.get("shared")):
                for kept in parts:
                    with _named(kept):
                        kept.restore(self._placed(kept, state))
        except BadInput:
            with shared_as(modules, shared):
                for kept, was in before.items():
                    with suppress(Exception):  # one that takes no state has lost none
                        kept.restore(was)
            raise
        if built is not None:
            self._warn_of_hooks(state, built)
        if self.is_trained:
            now = {"platform": platform_on(self.device)}
            for line in about_platform(compare({"platform": state["platform"]}, now)):
                log.warning(line)
            put_random_state(state, self.device)

    def _placed(self, kept: Part, state: Mapping[str, Any]) -> Any:
        """Return the state of a part in one that was read, on the devices where an object had it.

        Earlier checkpoints do not say which these are: then it stays on the CPU.
        """
        read, label, on_cpu = _of(kept, state), kept.label, state.get("left_on_cpu", {})
        return placed_states({label: read}, on_cpu, self.device)[label] if label in on_cpu else read


def _copied(kept: Part, state: Any) -> Any:
    """Return a copy, on the CPU if it may be large: it is there for a moment only."""
    if isinstance(kept, KeptObject):
        return copy.deepcopy(state)
    return tree_map_only(Tensor, lambda x: x.detach().to("cpu", copy=True), state)


def _state_of(kept: Part, built: AsBuilt) -> Any:
    return kept.state(built) if isinstance(kept, KeptModule) else kept.state()


def _checked(name: object, part: Any) -> Stateful:
    """Return what a loop keeps, not wrapped; `BadInput` if it has no state."""
    if not isinstance(part, Stateful):
        problem = f"{shown(part)} has no state_dict and load_state_dict"
        raise BadInput(problem, key=f"{ALSO}{name}")
    if isinstance(part, Quantization) and part.is_removed:
        raise BadInput("it was removed from its model", key=f"{ALSO}{name}")
    return bare_model(part) if isinstance(part, nn.Module) else part


def _own_q(label: str, module: nn.Module, given: Sequence[Quantization]) -> Quantization | None:
    """Return the quantization of a module; `BadInput` if it has one that is not given."""
    own = next((q for q in given if q.model is module), None)
    if own is None and is_quantized(module):
        is_main = label == MODEL
        problem = "the model is quantized, and its scales and random bits would be lost"
        how = "pass" if is_main else "add"
        hint = f"{how} the q that altcore.quantize_model returned for the whole model"
        raise BadInput(problem, key="q" if is_main else label, hint=hint)
    return own


@contextmanager
def _named(kept: Kept) -> Iterator[None]:
    """Make whatever is raised by what does not take its state an error of that."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:  # code of others
        problem = f"it did not take its state: {described(error)}"
        raise BadInput(problem, key=kept.key) from error


def _of(kept: Kept, state: Mapping[str, Any]) -> Any:
    """Return the state of a part in the state of the loop."""
    if kept.label == SCALER:
        return state["scaler"]
    return state["also"][kept.label.removeprefix(ALSO)] if kept.label.startswith(ALSO) else state
