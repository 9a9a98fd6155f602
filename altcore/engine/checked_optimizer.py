"""The optimizer as the engine uses it: what it trains and keeps is checked, its errors name it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from altcore.engine.fingerprints import memory
from altcore.engine.hidden_state import optimizer_parts
from altcore.engine.labels import MODEL, parameter_names
from altcore.engine.named_errors import check_savable, naming
from altcore.engine.optimizer_checks import outside
from altcore.errors import BadInput, PluginError
from altcore.quantization import ROUNDABLE, check_roundable, roundable_state
from altcore.recipes import some


def check_optimizer(made: Any, settings: object, model: nn.Module, who: str) -> Optimizer:
    """Return what an optimizer's ``build`` returned, checked, with errors that name it.

    If it does not say which states are roundable, its settings may. Raises `PluginError` if it is
    no optimizer of the model.
    """
    if not isinstance(made, Optimizer):
        kind = type(made).__name__
        raise PluginError(f"{who}: build returned {kind}, not a torch.optim.Optimizer")
    if trained(model) and len(left_out(made, model)) == len(trained(model)):
        raise PluginError(f"{who}: it has none of the model's parameters that are trained")
    if problem := outside(made, parameter_names({MODEL: model})):
        raise PluginError(f"{who}: {problem}: make it a parameter of the model")
    if getattr(made, ROUNDABLE, None) is None:
        setattr(made, ROUNDABLE, getattr(settings, ROUNDABLE, None))
    with _blaming(who):
        roundable_state(made)
    _name_errors(made, model, who)
    return made


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def left_out(optimizer: Optimizer, model: nn.Module) -> list[str]:
    """Return the names of the trained parameters that the optimizer does not have."""
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return [name for name, p in trained(model).items() if id(p) not in stepped]


def about_optimizer(optimizer: Optimizer, model: nn.Module) -> list[str]:
    """Tell of parameters that it does not have, and of state that no checkpoint of it has."""
    told, names = [], left_out(optimizer, model)
    if names:
        count = f"{len(names)} of {len(trained(model))}"
        told.append(
            f"{count} parameters are not in the optimizer, and stay as they are: {some(names)}"
        )
    if parts := optimizer_parts(optimizer):
        told.append(
            f"the optimizer keeps state in {some(parts)}, which its state_dict leaves out: a run "
            "that goes on begins it anew"
        )
    return told


def _name_errors(optimizer: Optimizer, model: nn.Module, who: str) -> None:
    """Let errors of an optimizer's methods name it.

    Its state is checked after the first step, and whenever it is asked for: it must fit into a
    checkpoint, and nobody else finds out before the run is to go on.
    """
    step, state_dict, load = optimizer.step, optimizer.state_dict, optimizer.load_state_dict
    is_checked = False

    def named_step(*args: Any, **kwargs: Any) -> Any:
        nonlocal is_checked
        with naming(who, "step"):
            done = step(*args, **kwargs)
        if not is_checked:
            named_state_dict()
            is_checked = True
        return done

    def named_state_dict() -> dict[str, Any]:
        with naming(who, "state_dict"):
            state: dict[str, Any] = check_savable(who, "optimizer", state_dict())
        _check_own(state, model, who)
        with _blaming(who):
            check_roundable(optimizer)
        return state

    def named_load(state: dict[str, Any]) -> None:
        with naming(who, "load_state_dict"):
            load(state)

    methods: dict[str, Callable[..., Any]] = {
        "step": named_step,
        "state_dict": named_state_dict,
        "load_state_dict": named_load,
    }
    for name, method in methods.items():
        setattr(optimizer, name, method)


@contextmanager
def _blaming(who: str) -> Iterator[None]:
    """Make what is wrong with an optimizer in general an error of this one."""
    try:
        yield
    except BadInput as error:
        raise PluginError(f"{who}: {error.problem}") from error


def _check_own(state: Mapping[str, Any], model: nn.Module, who: str) -> None:
    """Raise `PluginError` for a state that shares memory with a parameter.

    A checkpoint gives back a copy of its own, which does not follow the parameter any more.
    """
    owners = {memory(p): name for name, p in model.named_parameters()}
    for where, value in _tensors(state, "optimizer"):
        shared = owners.get(memory(value)) if memory(value) else None
        if shared is not None:
            raise PluginError(
                f"{who}: {where} shares its memory with the parameter {shared}, which no "
                "checkpoint gives back: keep a copy"
            )


def _tensors(value: Any, where: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield where, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _tensors(part, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for i, part in enumerate(value):
            yield from _tensors(part, f"{where}[{i}]")
