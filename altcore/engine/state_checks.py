"""Checks of a checkpoint's state against the model that was built, before anything is loaded.

What holds for a model's state holds for its snapshots as well.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from altcore.engine.building import Built
from altcore.engine.collapse import Detector
from altcore.engine.finite import is_finite
from altcore.engine.history import RunHistory
from altcore.engine.labels import MODEL, parameter_names
from altcore.engine.memory import is_out_of_memory
from altcore.engine.model_state import check_buffers, may_differ
from altcore.engine.optimizer_checks import (
    check_layout,
    check_optimizer,
    groups_of,
    take_order,
)
from altcore.engine.randomness import random_state, set_random_state
from altcore.engine.trespass import same_bits
from altcore.errors import BadInput, InvalidCheckpoint, UnreadableFile
from altcore.quantization import Quantization, check_moments, check_quantization_state


class Trained(Protocol):
    """What weights and moments are for: a run, or what was built for one."""

    @property
    def model(self) -> nn.Module:
        """The model, quantized."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer."""

    @property
    def quantization(self) -> Quantization:
        """Formats and scales."""


@contextmanager
def readable(whole: str = "a run") -> Iterator[None]:
    """Take whatever an object of another form than a state raises for an invalid checkpoint.

    But for a lack of memory, which says nothing about the state: `UnreadableFile`.
    """
    try:
        yield
    except (BadInput, InvalidCheckpoint):
        raise
    except (*_OF_OTHER_FORMS, MemoryError) as error:
        if is_out_of_memory(error):
            problem = f"a checkpoint cannot be checked for want of memory: {error!r:.200}"
            raise UnreadableFile(problem, hint="it stays as it is: try again") from error
        raise InvalidCheckpoint(f"it is no state of {whole}: {error!r:.200}") from error


_OF_OTHER_FORMS = (LookupError, TypeError, AttributeError, ValueError, RuntimeError)


def check_state(state: Mapping[str, Any], built: Built, *, is_healthy: bool = True) -> None:
    """Check a checkpoint's state against what it is for.

    Nothing is changed but the order of the parameters within the optimizer's groups, if it is
    another one.

    An anomaly's is not ``is_healthy``: its numbers are what they are.

    Raises:
        InvalidCheckpoint: naming what is wrong.
        BadInput: if a format in it is another than it was.
    """
    with readable():
        check_ties(state, built.model, built.optimizer)
        layout, names = state["optimizer_layout"], parameter_names({MODEL: built.model})
        take_order(layout, built.optimizer, names)
        check_weights_and_moments(state, built, is_healthy=is_healthy)
        check_layout(layout, state["optimizer"], built.optimizer, names)
        step, rate = state["step"], state["lr_scale"]
        if type(step) is not int or step < 0:
            raise InvalidCheckpoint(f"its step is {step!r:.60}")
        if not isinstance(rate, int | float) or not 0 < rate < math.inf:
            raise InvalidCheckpoint(f"its factor of the learning rate is {rate!r:.60}")
        for key in ("degraded", "reports"):
            if not all(isinstance(name, str) for name in state[key]):
                raise InvalidCheckpoint(f"its {key} are no names")
        if not all(isinstance(shift, dict) for shift in state["shifts"]):
            raise InvalidCheckpoint("its shifts are no records")
        if unknown := state["requires_grad"].keys() - dict(built.model.named_parameters()):
            raise InvalidCheckpoint(f"the model has no parameter {sorted(unknown)[0]!r:.60}")
        if unknown := set(state["in_evaluation"]) - dict(built.model.named_modules()).keys():
            raise InvalidCheckpoint(f"the model has no module {sorted(unknown)[0]!r:.60}")
        trained = sum(p.requires_grad for p in built.model.parameters())
        if tuple(state["dead_steps"].shape) != (trained,):
            raise InvalidCheckpoint("its count of dead gradients is of other parameters")
        if not all(isinstance(own["plugins"], dict) for own in state["ranks"]):
            raise InvalidCheckpoint("its states of plugins are none")
        now = random_state(built.device)
        try:
            for own in state["ranks"]:
                set_random_state(own["random"], built.device)
        finally:
            set_random_state(now, built.device)
        Detector(built.config).load_state_dict(state["detector"])
        RunHistory(**state["history"])


def check_weights_and_moments(
    state: Mapping[str, Any], built: Trained, *, is_healthy: bool = True
) -> None:
    """Check model, quantization and optimizer of a checkpoint or a snapshot."""
    with readable():
        check = check_weights if is_healthy else check_tensors
        check(state, built.model)
        about = (state["quantization"], state["model"])
        check_quantization_state(built.quantization, *about, is_healthy=is_healthy)
        moments = check_optimizer(state["optimizer"], built.optimizer)
        if is_healthy:
            check_moments(built.quantization, state["quantization"], moments)


def check_weights(
    state: Mapping[str, Any], model: nn.Module, numbers: Container[str] | None = None
) -> None:
    """Check names, shapes and types of a model in a state.

    What is finite in ``model`` is finite in the state; if ``numbers`` are given, these alone.
    """
    check_tensors(state, model)
    weights = state["model"]
    for name, own in model.state_dict().items():
        if not isinstance(own, Tensor) or (numbers is not None and name not in numbers):
            continue
        if name not in weights or weights[name].shape != own.shape:
            continue  # a buffer that grew, as an attention mask
        if not is_finite(weights[name]) and is_finite(own):
            raise InvalidCheckpoint(f"{name} is not finite")


def numbers_of(model: nn.Module) -> list[str]:
    """Return the names of parameters and running statistics, which are never infinite.

    Another buffer, as an attention mask, may be.
    """
    statistics = [
        f"{prefix}.{key}" if prefix else key
        for prefix, module in model.named_modules()
        if isinstance(module, _NormBase)
        for key in module._buffers
    ]
    return [name for name, _ in model.named_parameters(remove_duplicate=False)] + statistics


def check_tensors(state: Mapping[str, Any], model: nn.Module) -> None:
    """Check names, shapes and types of a model in a state; buffers may have others since."""
    with readable():
        _check_tensors(state, model)


def _check_tensors(state: Mapping[str, Any], model: nn.Module) -> None:
    weights, built = state["model"], model.state_dict()
    other = {n for n in weights.keys() ^ built.keys() if not may_differ(n, state, model)}
    if other:
        missing, more = (sorted(str(n) for n in other & d.keys()) for d in (built, weights))
        raise InvalidCheckpoint(
            f"the model has not the names that it was built with: missing {missing[:3]}, "
            f"unknown {more[:3]}"
        )
    for name, own in built.items():
        if name in weights and isinstance(own, Tensor):
            is_free = may_differ(name, state, model)
            _check_like(name, weights[name], own, () if is_free else LIKE)
    check_buffers(state["buffers"], model)


def check_ties(
    state: Mapping[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Raise `InvalidCheckpoint` if trained parameters are one that were two, or were one."""
    with readable():
        weights, was = state["model"], state["optimizer_layout"]["parameters"]
        groups = groups_of(optimizer, parameter_names({MODEL: model}))
        now = [name for name in chain.from_iterable(groups) if name is not None]
        named = dict(model.named_parameters(remove_duplicate=False))
        for name in [name for name in was if name in named and name not in now]:
            if one := next((other for other in now if named.get(other) is named[name]), None):
                own = "was a parameter of its own"
                raise InvalidCheckpoint(f"{name} {own}, and is tied to {one} now")
        for name in [name for name in now if name in weights and name not in was]:
            same = (x for x in was if x in weights and same_bits(weights[x], weights[name]))
            if one := next(same, None):
                own = "is a parameter of its own now"
                raise InvalidCheckpoint(f"{name} was tied to {one}, and {own}")


LIKE = ("shape", "dtype", "layout")


def _check_like(name: str, given: Any, own: Tensor, facts: Sequence[str]) -> None:
    if not isinstance(given, Tensor):
        raise InvalidCheckpoint(f"{name} is {type(given).__name__}, not a tensor")
    for what in facts:
        if getattr(given, what) != getattr(own, what):
            raise InvalidCheckpoint(
                f"the {what} of {name} is {_shown(getattr(given, what))}, and the model has "
                f"{_shown(getattr(own, what))}"
            )


def _shown(value: Any) -> str:
    return str(list(value) if isinstance(value, torch.Size) else value)


@contextmanager
def fitting(key: str) -> Iterator[None]:
    """Make a state that is not of what was given an error of that: its file is whole."""
    try:
        yield
    except InvalidCheckpoint as error:
        problem = f"the checkpoint does not fit the one that is given: {error}"
        raise BadInput(problem, key=key) from error
