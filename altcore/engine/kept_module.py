"""A module in the checkpoints of a loop of your own, be it the one that is trained or another."""

from __future__ import annotations

from collections.abc import Container, Mapping
from itertools import chain
from typing import Any

import torch
from attrs import frozen
from torch import nn
from torch.nn.parameter import is_lazy

from altcore.engine.as_built import AsBuilt
from altcore.engine.finite import has_nan, is_finite
from altcore.engine.labels import MODEL, Kept, within
from altcore.engine.model_state import (
    flags_of,
    misstated,
    put_model,
    unsaved_buffers,
    without_numbers,
)
from altcore.engine.module_kinds import kinds_of, options_of, warn_of_other_kinds
from altcore.engine.own_gradients import check_gradients, gradients_of, put_gradients
from altcore.engine.own_recipe import asked_of, check_asked
from altcore.engine.state_checks import (
    check_tensors,
    check_weights,
    fitting,
    numbers_of,
)
from altcore.engine.state_tensors import named_tensors
from altcore.errors import BadInput, InvalidCheckpoint
from altcore.log import log
from altcore.quantization import Quantization, check_quantization_state


@frozen(eq=False)
class KeptModule(Kept):
    """All that a checkpoint has of a module."""

    module: nn.Module
    """Not wrapped."""
    q: Quantization | None
    names: Mapping[int, str]
    """Of the parameters of all modules of the loop, by id."""
    is_trained: bool
    """Whether the loop trains; it may only evaluate."""

    def state(self, built: AsBuilt) -> dict[str, Any]:
        """Return its state; it was ``built`` so."""
        weights = self.module.state_dict()
        return {
            "model": weights,
            "buffers": unsaved_buffers(self.module, weights),
            "buffer_forms": built.of(self.module).forms(weights),
            "requires_grad": flags_of(self.module),
            "module_kinds": kinds_of(self.module),
            "module_options": options_of(self.module),
            "modes": {name: part.training for name, part in self.module.named_modules()},
            "gradients": gradients_of(self.module),
            "quantization": None if self.q is None else self.q.state_dict(),
            "recipe": None if self.q is None else asked_of(self.q),
        }

    def check_stated(self, state: Mapping[str, Any]) -> None:
        """Raise `BadInput` if it states something else than it has."""
        module = self.module.named_parameters()
        elsewhere = {id(p) for name, p in module if self.names[id(p)] != within(name, self.label)}
        if wrong := misstated(self.module, state["model"], elsewhere):
            raise BadInput(wrong, key=self.key)

    def unwatched(self) -> frozenset[str]:
        """Return the names of buffers and frozen weights that are not finite now."""
        parameters = self.module.named_parameters(remove_duplicate=False)
        trained = {name for name, p in parameters if p.requires_grad}
        weights = self.module.state_dict()
        return frozenset(
            within(name, self.label)
            for name, tensor in named_tensors({**weights, **unsaved_buffers(self.module, weights)})
            if name not in trained and not is_finite(tensor)
        )

    def not_finite(self, state: Mapping[str, Any], unwatched: Container[str]) -> str | None:
        """Return the name of the first tensor that is no number to go on from, None if all are.

        Weights and running statistics are finite. Another buffer, as an attention mask, may be
        infinite, but not NaN. What is ``unwatched`` may be anything.
        """
        numbers = {*numbers_of(self.module)}
        for name, tensor in named_tensors({**state["model"], **state["buffers"]}):
            label = within(name, self.label)
            if label in unwatched:
                continue
            if name in numbers and not is_finite(tensor):
                return label
            if has_nan(tensor):
                return f"buffer {label}"
        return None

    def check_ready(self) -> None:
        """Raise `BadInput` if the module has no numbers, or is to be trained and cannot be."""
        if self.q is not None and self.q.is_removed:
            problem = "it was removed from the model, and its scales and random bits are lost"
            hint = "save before q.remove(), or before the end of its with block"
            raise BadInput(problem, key=self._key_of_q, hint=hint)
        if name := without_numbers(self.module):
            raise BadInput(f"{name} is on the device meta, and has no numbers", key=self.key)
        if self.is_trained and _is_for_inference(self.module):
            problem = "it was made under torch.inference_mode, and cannot be trained"
            raise BadInput(problem, key=self.key)
        for name, x in chain(self.module.named_parameters(), self.module.named_buffers()):
            if is_lazy(x):
                raise BadInput(f"{name} has no shape yet: call the model once", key=self.key)

    def check_given(self, state: Mapping[str, Any]) -> None:
        """Raise `BadInput` if a state is of another module or recipe."""
        self.check_ready()
        if (self.q is None) != (state["quantization"] is None):
            told = "holds a quantization, and none is given"
            told = told if self.q is None else "holds no quantization"
            raise BadInput(f"the checkpoint {told}", key=self._key_of_q)
        if self._takes_torchs_state:
            with fitting(self.key):
                check_tensors(state, self.module)
        if self.is_trained:
            with fitting(self.key):
                check_gradients(state["gradients"], self.module)
            _check_flags(state["requires_grad"], flags_of(self.module), self.key)
        if self.q is not None:
            about = (state["recipe"], asked_of(self.q), self._key_of_q)
            check_asked(*about, is_trained=self.is_trained)

    def check(self, state: Mapping[str, Any]) -> None:
        """Raise `InvalidCheckpoint` if the numbers of a state that fits are none to go on from."""
        try:
            if self._takes_torchs_state:
                check_weights(state, self.module, numbers_of(self.module))
            if self.q is not None:
                check_quantization_state(self.q, state["quantization"], state["model"])
        except InvalidCheckpoint as error:
            raise type(error)(within(str(error), self.label)) from error

    def restore(self, state: Mapping[str, Any]) -> None:
        """Load a state that was checked."""
        known = state["module_kinds"], state.get("module_options")
        warn_of_other_kinds(*known, self.module, self.label)
        # What is only to be evaluated may have been made in inference mode.
        with torch.inference_mode(not self.is_trained and _is_for_inference(self.module)):
            put_model(self.module, self.q, state)
        if self.is_trained:
            put_gradients(self.module, state["gradients"])
            self._put_modes(state["modes"])

    @property
    def _key_of_q(self) -> str:
        return "q" if self.label == MODEL else self.key

    @property
    def _takes_torchs_state(self) -> bool:
        """Whether names and shapes are those that torch compares; others take what they like."""
        return type(self.module).load_state_dict is nn.Module.load_state_dict

    def _put_modes(self, modes: Mapping[str, bool]) -> None:
        """Put parts into evaluation or training as they were, if the whole is in training, and was.

        A loop that saves while it evaluates sets the mode itself before it trains: if it does not,
        the loop that goes on is another one.
        """
        if self.module.training and modes[""]:
            for name, module in self.module.named_modules():
                module.training = modes.get(name, module.training)
        elif self.module.training:
            told = f"{self.label} was in evaluation mode when it was saved, and stays in training"
            log.warning(told, hint="call train() after each evaluation, before you save")


def _is_for_inference(module: nn.Module) -> bool:
    tensors = (*module.parameters(), *module.buffers())
    return any(t.is_inference() for t in tensors if not is_lazy(t))


def _check_flags(was: Mapping[str, bool], now: Mapping[str, bool], key: str) -> None:
    """Raise `BadInput` if a parameter was trained that is frozen now, or the other way round."""
    for name, flag in was.items():
        if now.get(name, flag) != flag:
            kinds = ("trained", "frozen") if flag else ("frozen", "trained")
            problem = f"{name} was {kinds[0]} when the checkpoint was written, and is {kinds[1]}"
            hint = "set its requires_grad as it was, and change it afterwards"
            raise BadInput(problem, key=key, hint=hint)
