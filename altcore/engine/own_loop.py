"""The state of a training loop of your own: what its checkpoints hold, checked and restored."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from attrs import frozen
from torch import nn
from torch.nn.parameter import is_lazy

from altcore.builtin_types import as_builtin, nested_too_deeply
from altcore.engine.hidden_state import HOOKS, optimizer_parts
from altcore.engine.model_state import (
    AsBuilt,
    flags_of,
    misstated,
    put_model,
    unsaved_buffers,
    without_numbers,
)
from altcore.engine.module_kinds import kinds_of, warn_of_other_kinds
from altcore.engine.optimizer_checks import check_layout, check_optimizer, layout_of, outside
from altcore.engine.optimizer_loading import load_optimizer, misstated_moment
from altcore.engine.own_gradients import check_gradients, gradients_of, put_gradients
from altcore.engine.own_recipe import asked_of, check_asked
from altcore.engine.randomness import random_state, set_random_state
from altcore.engine.state_checks import (
    check_tensors,
    check_weights,
    not_finite_in,
    numbers_of,
    unwatched_in,
)
from altcore.engine.stateful import (
    Stateful,
    check_stateful,
    check_states,
    load_states,
    not_finite_among,
    states_of,
    unwatched_among,
)
from altcore.errors import BadInput, InvalidCheckpoint, shown
from altcore.log import log
from altcore.quantization import (
    Quantization,
    bare_model,
    check_moments,
    check_quantization_state,
    is_quantized,
)
from altcore.runs import REGULAR


@frozen(eq=False)
class OwnLoop:
    """What a checkpoint holds the state of."""

    model: nn.Module
    """Not wrapped."""
    optimizer: torch.optim.Optimizer | None
    q: Quantization | None
    scaler: torch.amp.GradScaler | None
    """None if it is disabled: it has no state."""
    also: Mapping[str, Stateful]
    """What else the loop keeps, by name."""

    @classmethod
    def of(
        cls,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        q: Quantization | None,
        scaler: torch.amp.GradScaler | None,
        also: Mapping[str, Stateful] | None,
    ) -> OwnLoop:
        """Take the model out of its wrappers; `BadInput` if ``q`` is not of it."""
        own = bare_model(model)
        if q is not None and own is not q.model:
            raise BadInput("it is not the model that was quantized", key="q")
        if q is None and is_quantized(own):
            problem = "the model is quantized, and its scales and random bits would be lost"
            hint = "pass the q that altcore.quantize_model returned for the whole model"
            raise BadInput(problem, key="q", hint=hint)
        if not isinstance(optimizer, torch.optim.Optimizer | None):
            problem = f"a torch.optim.Optimizer is needed, not {shown(optimizer)}"
            raise BadInput(problem, key="optimizer")
        is_enabled = scaler is not None and scaler.is_enabled()
        return cls(own, optimizer, q, scaler if is_enabled else None, check_stateful(also or {}))

    def built(self) -> AsBuilt:
        """Return model and optimizer as they are now, before training."""
        assert self.optimizer is not None  # only a loop that is restored has none
        return AsBuilt(self.model, self.optimizer)

    def hidden(self, built: AsBuilt) -> list[str]:
        """Return where state is that no checkpoint has; the model was ``built`` so."""
        hooks = [f"{HOOKS} of {name}" for name in built.late_hooks(built.hooks)]
        return [*built.hidden(), *hooks]

    def unwatched(self) -> frozenset[str]:
        """Return the names of what is not finite now, before training: it may stay so."""
        return unwatched_in(self.model) | unwatched_among(self.also)

    def not_finite(self, state: Mapping[str, Any], unwatched: Container[str] = ()) -> str | None:
        """Return the name of the first part of a state that is no number to go on from.

        ``unwatched`` is what was not finite before training, if somebody knows.
        """
        optimizer = (state["optimizer"], state["optimizer_layout"]["parameters"])
        parts = (numbers_of(self.model), *optimizer, state["scaler"])
        own = not_finite_in(state["model"], *parts, unwatched)
        return own or not_finite_among(state["also"], self.also, unwatched)

    @property
    def device(self) -> torch.device:
        """That of the model's first parameter."""
        first = next(self.model.parameters(), None)
        return torch.device("cpu") if first is None else first.device

    def state(self, step: int, built: AsBuilt | None = None) -> dict[str, Any]:
        """Return the state after a step; the model was ``built`` so, or as it is now."""
        step = as_builtin(step)
        if type(step) is not int or step < 0:
            problem = f"a whole number of at least 0 is needed, not {shown(step)}"
            raise BadInput(problem, key="step")
        self._check_quantization()
        self._check_numbers()
        moments, layout = self._moments()
        weights = self.model.state_dict()
        if wrong := misstated(self.model, weights):
            raise BadInput(wrong, key="model")
        built = built or self.built()
        return {
            "step": step,
            "model": weights,
            "buffers": unsaved_buffers(self.model, weights),
            "buffer_forms": built.forms(weights),
            "requires_grad": flags_of(self.model),
            "module_kinds": kinds_of(self.model),
            "modes": {name: module.training for name, module in self.model.named_modules()},
            "quantization": None if self.q is None else self.q.state_dict(),
            "recipe": None if self.q is None else asked_of(self.q),
            "optimizer": moments,
            "optimizer_layout": layout,
            "optimizer_class": type(self.optimizer).__name__,
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "random": random_state(self.device),
            "gradients": gradients_of(self.model),
            "also": states_of(self.also),
        }

    def _moments(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the state of the optimizer and its layout; `BadInput` if it cannot be kept."""
        assert self.optimizer is not None  # only a loop that is restored has none
        if hidden := optimizer_parts(self.optimizer):
            problem = f"it keeps state in {', '.join(hidden)}, which its state_dict leaves out"
            hint = "give it a state_dict and a load_state_dict that have all of it"
            raise BadInput(problem, key="optimizer", hint=hint)
        kept = self.optimizer.state_dict()
        if problem := nested_too_deeply(kept):
            raise BadInput(f"its state {problem}", key="optimizer")
        moments = as_builtin(kept)
        if wrong := misstated_moment(self.optimizer, kept):
            raise BadInput(wrong, key="optimizer")
        if foreign := outside(self.optimizer, self.model):
            hint = "give the model that has all that the optimizer moves"
            raise BadInput(foreign, key="optimizer", hint=hint)
        return moments, layout_of(moments, self.optimizer, self.model)

    def _check_quantization(self) -> None:
        """Raise `BadInput` if the quantization is one no more."""
        if self.q is not None and self.q.is_removed:
            problem = "it was removed from the model, and its scales and random bits are lost"
            hint = "save before q.remove(), or before the end of its with block"
            raise BadInput(problem, key="q", hint=hint)

    def _check_numbers(self) -> None:
        """Raise `BadInput` if a tensor of the model holds no numbers."""
        if name := without_numbers(self.model):
            raise BadInput(f"{name} is on the device meta, and has no numbers", key="model")
        if self.optimizer is not None and _is_for_inference(self.model):
            problem = "it was made under torch.inference_mode, and cannot be trained"
            raise BadInput(problem, key="model")
        for name, x in chain(self.model.named_parameters(), self.model.named_buffers()):
            if is_lazy(x):
                raise BadInput(f"{name} has no shape yet: call the model once", key="model")

    def check_own(self, state: Mapping[str, Any], built: AsBuilt | None = None) -> None:
        """Raise `BadInput` if a state is not to be written, since the loop could not go on from it.

        The loop would refuse the state, or is in the middle of a step. The model was ``built`` so,
        or as it is now.
        """
        # torch resets what it keeps of an optimizer in `GradScaler.update`.
        if self.scaler is not None and id(self.optimizer) in self.scaler._per_optimizer_states:
            problem = "it has unscaled the gradients of this step, and update() is still to come"
            raise BadInput(problem, key="scaler", hint="save after scaler.update()")
        try:
            self.check(state, REGULAR)
        except InvalidCheckpoint as error:
            changed = built.problem() if built is not None else None
            problem = f"it could not be restored: {changed or error}"
            raise BadInput(problem, key="model") from error

    def check(self, state: Mapping[str, Any], kind: str) -> None:
        """Check a state of a whole checkpoint before anything is loaded.

        Raises:
            InvalidCheckpoint: if its numbers are no state to go on from.
            BadInput: if it does not fit what was given: an earlier one would fit no better.
        """
        try:
            self._check_given(state)
            check_weights(state, self.model, numbers_of(self.model))
            if self.q is not None:
                check_quantization_state(self.q, state["quantization"], state["model"])
            if self.optimizer is not None:
                if kind == REGULAR and (bad := self.not_finite(state, self.unwatched())):
                    raise InvalidCheckpoint(f"{bad} is not finite")
                with _fitting("optimizer"):
                    moments = check_optimizer(state["optimizer"], self.optimizer)
                    about = (state["optimizer"], self.optimizer, self.model)
                    check_layout(state["optimizer_layout"], *about)
                check_gradients(state["gradients"], self.model)
                if self.q is not None:
                    check_moments(self.q, state["quantization"], moments)
        except BadInput:  # a ValueError, too
            raise
        except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            raise InvalidCheckpoint(f"it is no state of this loop: {error!r:.200}") from error

    def _check_given(self, state: Mapping[str, Any]) -> None:
        """Raise `BadInput` if a state is of another model, optimizer or recipe."""
        self._check_quantization()
        self._check_numbers()
        parts = (("q", "quantization", self.q), ("scaler", "scaler", self.scaler))
        for key, part, given in parts:
            is_kept = state[part] is not None
            if is_kept and given is None and (key != "scaler" or self.optimizer is not None):
                raise BadInput(f"the checkpoint holds a {part}, and none is given", key=key)
            if given is not None and not is_kept:
                raise BadInput(f"the checkpoint holds no {part}", key=key)
        kept = state["also"]
        if self.optimizer is None:  # who evaluates asks for what he needs
            kept = {name: part for name, part in kept.items() if name in self.also}
        check_states(kept, self.also)
        with _fitting("model"):
            check_tensors(state, self.model)
        if self.optimizer is not None:
            _check_flags(state["requires_grad"], flags_of(self.model))
        if self.q is not None:
            check_asked(state["recipe"], asked_of(self.q), is_trained=self.optimizer is not None)
        was, is_now = state["optimizer_class"], type(self.optimizer).__name__
        if self.optimizer is not None and was != is_now:
            raise BadInput(f"the checkpoint is of {was}, and it is {is_now}", key="optimizer")

    def restore(self, state: Mapping[str, Any]) -> None:
        """Load a state that was checked."""
        warn_of_other_kinds(state["module_kinds"], self.model)
        load_states(state["also"], self.also)
        # What is only to be evaluated may have been made in inference mode.
        with torch.inference_mode(self.optimizer is None and _is_for_inference(self.model)):
            put_model(self.model, self.q, state)
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        if self.optimizer is not None:
            # What a scheduler has put into a group stays, if the checkpoint knows nothing of it.
            pairs = zip(
                self.optimizer.param_groups, state["optimizer"]["param_groups"], strict=True
            )
            groups = [{**own, **kept} for own, kept in pairs]
            load_optimizer(self.optimizer, {**state["optimizer"], "param_groups": groups})
            set_random_state(state["random"], self.device)
            put_gradients(self.model, state["gradients"])
            _put_modes(self.model, state["modes"])


def _is_for_inference(model: nn.Module) -> bool:
    tensors = (*model.parameters(), *model.buffers())
    return any(t.is_inference() for t in tensors if not is_lazy(t))


def _put_modes(model: nn.Module, modes: Mapping[str, bool]) -> None:
    """Put modules into evaluation or training as they were, if the whole is in training, and was.

    A loop that saves while it evaluates sets the mode itself before it trains: if it does not, the
    loop that goes on is another one.
    """
    if model.training and modes[""]:
        for name, module in model.named_modules():
            module.training = modes.get(name, module.training)
    elif model.training:
        told = "the model was in evaluation mode when it was saved, and stays in training"
        log.warning(told, hint="call train() after each evaluation, before you save")


def _check_flags(was: Mapping[str, bool], now: Mapping[str, bool]) -> None:
    """Raise `BadInput` if a parameter was trained that is frozen now, or the other way round."""
    for name, flag in was.items():
        if now.get(name, flag) != flag:
            kinds = ("trained", "frozen") if flag else ("frozen", "trained")
            problem = f"{name} was {kinds[0]} when the checkpoint was written, and is {kinds[1]}"
            hint = "set its requires_grad as it was, and change it afterwards"
            raise BadInput(problem, key="model", hint=hint)


@contextmanager
def _fitting(key: str) -> Iterator[None]:
    """Make a state that is not of what was given an error of that: its file is whole."""
    try:
        yield
    except InvalidCheckpoint as error:
        problem = f"the checkpoint does not fit the one that is given: {error}"
        raise BadInput(problem, key=key) from error
