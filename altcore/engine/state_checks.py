"""Checks of a checkpoint's state against the model that was built, before anything is loaded.

What holds for a model's state holds for its snapshots as well.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from altcore.engine.buffers import check_buffers
from altcore.engine.building import Built
from altcore.engine.collapse import Detector
from altcore.engine.finite import has_nan, is_finite
from altcore.engine.history import RunHistory
from altcore.engine.optimizer_checks import check_layout, check_optimizer
from altcore.engine.randomness import random_state, set_random_state
from altcore.errors import BadInput, InvalidCheckpoint
from altcore.quantization import check_moments, check_quantization_state


@contextmanager
def _readable() -> Iterator[None]:
    """Take whatever an object of another form than a state raises for an invalid checkpoint."""
    try:
        yield
    except (BadInput, InvalidCheckpoint):
        raise
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise InvalidCheckpoint(f"it is no state of a run: {error!r:.200}") from error


def check_state(state: Mapping[str, Any], built: Built, *, is_healthy: bool = True) -> None:
    """Check a checkpoint's state against what it is for; nothing is changed.

    An anomaly's is not ``is_healthy``: its numbers are what they are.

    Raises:
        InvalidCheckpoint: naming what is wrong.
        BadInput: if a format in it is another than it was.
    """
    with _readable():
        check_weights_and_moments(state, built, is_healthy=is_healthy)
        moments = (state["optimizer"], built.optimizer, built.model)
        check_layout(state["optimizer_layout"], *moments)
        check_buffers(state["buffers"], built.model)
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
    state: Mapping[str, Any], built: Built, *, is_healthy: bool = True
) -> None:
    """Check model, quantization and optimizer of a checkpoint or a snapshot."""
    with _readable():
        check = check_weights if is_healthy else check_tensors
        check(state["model"], built.model)
        about = (state["quantization"], state["model"])
        check_quantization_state(built.quantization, *about, is_healthy=is_healthy)
        moments = check_optimizer(state["optimizer"], built.optimizer)
        if is_healthy:
            check_moments(built.quantization, state["quantization"], moments)


def check_weights(
    weights: Mapping[str, Any], model: nn.Module, numbers: Container[str] | None = None
) -> None:
    """Check names, shapes and types of a model's state.

    What is finite in ``model`` is finite in the state; if ``numbers`` are given, these alone.
    """
    check_tensors(weights, model)
    for name, own in model.state_dict().items():
        if not isinstance(own, Tensor) or (numbers is not None and name not in numbers):
            continue
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


def unwatched_in(model: nn.Module) -> frozenset[str]:
    """Return the names of buffers and frozen weights that are not finite now, before training."""
    parameters = model.named_parameters(remove_duplicate=False)
    trained = {name for name, p in parameters if p.requires_grad}
    return frozenset(
        name
        for name, tensor in model.state_dict().items()
        if name not in trained and isinstance(tensor, Tensor) and not is_finite(tensor)
    )


def check_tensors(weights: Mapping[str, Any], model: nn.Module) -> None:
    """Check names, shapes and types of a model's state."""
    built = model.state_dict()
    _same_names("the model", weights, built)
    for name, own in built.items():
        if isinstance(own, Tensor):
            _check_like(name, weights[name], own)


def _same_names(what: str, given: Mapping[Any, Any], built: Mapping[Any, Any]) -> None:
    if given.keys() != built.keys():
        missing, more = (sorted(map(str, d)) for d in (built.keys() - given, given.keys() - built))
        raise InvalidCheckpoint(
            f"{what} has not the names that it was built with: missing {missing[:3]}, "
            f"unknown {more[:3]}"
        )


def _check_like(name: str, given: Any, own: Tensor) -> None:
    if not isinstance(given, Tensor):
        raise InvalidCheckpoint(f"{name} is {type(given).__name__}, not a tensor")
    for what in ("shape", "dtype", "layout"):
        if getattr(given, what) != getattr(own, what):
            raise InvalidCheckpoint(
                f"the {what} of {name} is {_shown(getattr(given, what))}, and the model has "
                f"{_shown(getattr(own, what))}"
            )


def _shown(value: Any) -> str:
    return str(list(value) if isinstance(value, torch.Size) else value)


def not_finite_in(
    model: Mapping[str, Tensor],
    numbers: Container[str],
    optimizer: Mapping[str, Any],
    scaler: Mapping[str, Any] | None,
    unwatched: Container[str] = (),
) -> str | None:
    """Return the name of the first part of states that is no number to go on from, None if all are.

    Weights, running statistics, moments and the gradients' scale are finite. Another buffer, as an
    attention mask, or a setting of the optimizer may be infinite, but not NaN.

    Args:
        model: the state of the model.
        numbers: what `numbers_of` the model returns.
        optimizer: its state.
        scaler: of gradients; None without one.
        unwatched: what `unwatched_in` the model returned before training; these may be anything.
    """
    for name, tensor in model.items():
        if name in unwatched:
            continue
        if name in numbers and not is_finite(tensor):
            return name
        if isinstance(tensor, Tensor) and has_nan(tensor):
            return f"buffer {name}"
    for i, group in enumerate(optimizer["param_groups"]):
        for key, value in group.items():
            if _has_nan(value):
                return f"{key} of the optimizer's group {i}"
    for place, moments in optimizer["state"].items():
        for key, value in moments.items() if isinstance(moments, Mapping) else ():
            if isinstance(value, Tensor) and not is_finite(value):
                return f"{key} of the optimizer's parameter {place}"
    scale = (scaler or {}).get("scale", 1.0)
    is_number = isinstance(scale, float | int) and math.isfinite(scale)
    return None if is_number else "the gradients' scale"


def _has_nan(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_has_nan, value))
    return isinstance(value, float | Tensor) and bool(torch.as_tensor(value).isnan().any())
