"""Checks of an optimizer's state in a checkpoint against the optimizer that is to load it.

torch trusts the shapes that it loads: its fused optimizers write past the end of a moment that is
too small. Other optimizers, subclasses of torch's too, may keep any state and options: shapes of
their state are compared with the layout that was written beside it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from inspect import signature
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from altcore.engine.trespass import same_bits
from altcore.errors import InvalidCheckpoint
from altcore.recipes import some

MOMENTS = ("exp_avg_sq", "max_exp_avg_sq")
"""Second moments, which have no negative element."""
MOMENTUM = "momentum_buffer"
"""Of SGD, which makes it sparse if the first gradient is, as that of a sparse embedding."""
NUMBERS = ("step", "eta", "mu", "mu_product")
"""States of torch's optimizers that are one number."""
OTHER_SHAPES = ("Adafactor", "LBFGS")
"""Optimizers of torch whose moments have other shapes than their parameters."""


def layout_of(
    state: Mapping[str, Any], optimizer: torch.optim.Optimizer, names: Mapping[int, str]
) -> dict[str, Any]:
    """Return which parameter has each position in an optimizer's state, and each moment's shape.

    ``names`` are what `parameter_names` returns; a parameter that is not there is None.
    """
    return {"parameters": _in_order(optimizer, names), "shapes": _shapes(state)}


def groups_of(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> list[list[str | None]]:
    """Return the parameters of each group of an optimizer, sorted; None for one without a name.

    Their order is not the optimizer's own: `take_order` gives it that of a checkpoint.
    """
    groups = optimizer.param_groups
    return [sorted((names.get(id(p)) for p in group["params"]), key=str) for group in groups]


def _in_order(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> list[str | None]:
    return [names.get(id(p)) for group in optimizer.param_groups for p in group["params"]]


def take_order(
    layout: Mapping[str, Any], optimizer: torch.optim.Optimizer, names: Mapping[int, str]
) -> None:
    """Put the parameters within each group of an optimizer in the order that a checkpoint has.

    Those of a set have another order in each process. A group of other parameters stays as it is,
    which `check_layout` refuses.
    """
    was = iter(layout["parameters"])
    for group in optimizer.param_groups:
        now = {names.get(id(p)): p for p in group["params"]}
        order = list(islice(was, len(group["params"])))
        if None not in now and now.keys() == {*order}:
            group["params"][:] = [now[name] for name in order]


def outside(
    optimizer: torch.optim.Optimizer, names: Mapping[int, str], others: Sequence[Tensor] = ()
) -> str | None:
    """Return what is wrong with an optimizer that moves parameters that no checkpoint holds.

    Those are neither in a module, and so have a name, nor one of the ``others``, or a copy of it.
    """
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    for i, p in enumerate(parameters):
        if id(p) not in names and not any(same_bits(p.detach(), x.to(p.device)) for x in others):
            return f"its parameter {i} is not the model's, and no checkpoint would hold it"
    return None


def _shapes(state: Mapping[str, Any]) -> dict[Any, dict[str, list[int]]]:
    return {
        i: {key: list(x.shape) for key, x in entry.items() if isinstance(x, Tensor)}
        for i, entry in state["state"].items()
        if isinstance(entry, Mapping)
    }


def check_layout(
    layout: Mapping[str, Any],
    state: Mapping[str, Any],
    optimizer: torch.optim.Optimizer,
    names: Mapping[int, str],
) -> None:
    """Raise `InvalidCheckpoint` if a state is of parameters in another order, or was altered."""
    pairs = zip(layout["parameters"], _in_order(optimizer, names), strict=True)
    if other := [pair for pair in pairs if pair[0] != pair[1]]:
        was, now = other[0]
        raise InvalidCheckpoint(
            "the optimizer has its parameters in another order, or in other groups: "
            f"{was} is where {now} is now"
        )
    shapes = _shapes(state)
    for i, was_shapes in layout["shapes"].items():
        for key, was_shape in was_shapes.items():
            now_shape = shapes.get(i, {}).get(key)
            if now_shape != was_shape:
                raise InvalidCheckpoint(
                    f"the optimizer's {key} of parameter {i} is of shape {now_shape}, and was "
                    f"written of {was_shape}"
                )


def check_optimizer(
    state: Mapping[str, Any], optimizer: torch.optim.Optimizer
) -> list[tuple[Tensor, Mapping[str, Any]]]:
    """Check groups and moments; the latter of torch's own optimizers alone.

    Returns each parameter that has a state, and the state.
    """
    groups, built = state["param_groups"], optimizer.state_dict()["param_groups"]
    if [len(g["params"]) for g in groups] != [len(g["params"]) for g in built]:
        raise InvalidCheckpoint("the optimizer has other groups of parameters")
    options = _options_of_torch(optimizer)
    for i, (given, own) in enumerate(zip(groups, built, strict=True)):
        read = {key: own[key] for key in optimizer.defaults if key in own}
        if missing := sorted(read.keys() - given.keys()):
            raise InvalidCheckpoint(
                f"group {i} of the optimizer has no {some(missing)} in the checkpoint, and the "
                "optimizer has it as it is built"
            )
        _check_group(given, read, options)
    indices = [i for group in groups for i in group["params"]]
    own_parameters = [p for group in optimizer.param_groups for p in group["params"]]
    of_index = dict(zip(indices, own_parameters, strict=True))
    # Text is what an optimizer calls a state of all parameters by.
    if unknown := [i for i in state["state"] if i not in of_index and type(i) is not str]:
        raise InvalidCheckpoint(f"the optimizer has a state of no parameter: {unknown[0]!r:.60}")
    entries = {i: state["state"][i] for i in indices if i in state["state"]}
    if _has_known_shapes(optimizer):
        for i, entry in entries.items():
            for key, value in entry.items():
                _check_moment(f"{key} of parameter {i}", key, value, of_index[i])
        for group in groups:
            if len({frozenset(entries[i]) for i in group["params"] if i in entries}) > 1:
                raise InvalidCheckpoint("the optimizer has not the same state for all of a group")
    return [(of_index[i], entry) for i, entry in entries.items()]


def _check_group(
    given: Mapping[str, Any], own: Mapping[str, Any], options: Collection[str]
) -> None:
    """Check what the optimizer reads of a group; others, as schedulers, may add keys to it.

    ``options`` are those of torch. The others are whatever an optimizer made of them: a list that
    grew is none the worse, and loading restores it.
    """
    for key in sorted(own.keys() & options):
        if not _fits(given[key], own[key]):
            raise InvalidCheckpoint(
                f"{key} is {given[key]!r:.60} in the checkpoint, and {own[key]!r:.60} in the "
                "optimizer"
            )


def _options_of_torch(optimizer: torch.optim.Optimizer) -> set[str]:
    """Return the options whose types torch's own optimizers, some of them in C++, count on."""
    kinds = [kind for kind in type(optimizer).__mro__ if kind.__module__.startswith("torch.optim.")]
    return {name for kind in kinds for name in signature(kind).parameters}


def _fits(given: Any, own: Any) -> bool:
    """Whether one value of an option may take the place of another.

    A number may be a tensor, and a flag a number. An option that is None, as ``foreach``, is one
    that torch chooses.
    """
    if own is None or (given is None and isinstance(own, bool | str)):
        return True
    if isinstance(own, list | tuple):
        is_pair = isinstance(given, list | tuple) and len(given) == len(own)
        return is_pair and all(map(_fits, given, own))
    if _is_number(own):
        return _is_number(given)
    return type(given) is type(own)


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1
    return isinstance(value, int | float)


def _has_known_shapes(optimizer: torch.optim.Optimizer) -> bool:
    """Whether each state is a number, or has its parameter's shape: torch's own, but for some."""
    kind = type(optimizer)
    is_own = getattr(torch.optim, kind.__name__, None) is kind
    return is_own and kind.__name__ not in OTHER_SHAPES


def _check_moment(what: str, key: str, value: Any, parameter: Tensor) -> None:
    if not isinstance(value, Tensor):
        return
    if key not in NUMBERS and value.shape != parameter.shape:
        raise InvalidCheckpoint(
            f"the optimizer's {what} is of shape {list(value.shape)}, the parameter of "
            f"{list(parameter.shape)}"
        )
    is_other = key not in NUMBERS and value.is_complex() != parameter.is_complex()
    if is_other:
        raise InvalidCheckpoint(f"the optimizer's {what} is of type {value.dtype}")
    if value.layout == torch.sparse_coo and key == MOMENTUM:
        return
    if value.layout != torch.strided:
        raise InvalidCheckpoint(f"the optimizer's {what} is {value.layout}, and has to be dense")
    if any(value.stride(i) == 0 for i in range(value.dim()) if value.shape[i] > 1):
        raise InvalidCheckpoint(f"the optimizer's {what} is one number for many")
    parts = torch.view_as_real(value) if value.is_complex() else value
    if key in MOMENTS and bool((parts < 0).any()):
        raise InvalidCheckpoint(f"the optimizer's {what} has a negative element")
    if key == "step" and (value.dim() or not bool(torch.isfinite(value) & (value >= 0))):
        raise InvalidCheckpoint(f"the optimizer's {what} is {value.flatten()[:3].tolist()}")
