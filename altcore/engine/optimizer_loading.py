"""An optimizer's state, stated and loaded without a bit of it changed, or named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from altcore.engine.state_tensors import (
    beside,
    left_on_cpu,
    paired,
    placed_states,
    to_device_of,
)
from altcore.engine.trespass import same_bits
from altcore.errors import BadInput


def load_optimizer(
    optimizer: torch.optim.Optimizer, state: Mapping[str, Any], key: str = "optimizer"
) -> None:
    """Load a checked state.

    torch gives moments the type of their parameters: those of another type get theirs again. Errors
    call the optimizer by ``key``.

    Raises:
        BadInput: if the optimizer states something else afterwards, or did not take it.
    """
    options = [dict(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(placed(state, optimizer))
    _keep_options(optimizer, options)
    if type(optimizer).load_state_dict is torch.optim.Optimizer.load_state_dict:
        for _, entry, told in _entries(state, optimizer):
            for name in entry.keys() & told.keys():
                entry[name] = beside(entry[name], told[name], _in_type_of)
    now = optimizer.state_dict()["state"]
    for place, entry in state["state"].items():
        for name, kept, own in paired(entry, now.get(place)):
            if not _is_same(own, kept):
                problem = f"it did not take {name} of parameter {place} from the checkpoint"
                raise BadInput(problem, key=key, hint="mend its load_state_dict")


def _keep_options(optimizer: torch.optim.Optimizer, before: Sequence[Mapping[str, Any]]) -> None:
    """Let options that are tensors stay the ones that a loop may hold, with the loaded values.

    But for those that were one, and are several by now.
    """
    loaded: dict[int, list[tuple[dict[str, Any], str, Tensor]]] = {}
    for group, own in zip(optimizer.param_groups, before, strict=True):
        for key, was in own.items():
            if isinstance(was, Tensor) and isinstance(group.get(key), Tensor):
                loaded.setdefault(id(was), []).append((group, key, was))
    for places in loaded.values():
        was, new = places[0][2], [group[key] for group, key, _ in places]
        is_one = all(same_bits(new[0], x) for x in new[1:])
        if is_one and (was.shape, was.dtype) == (new[0].shape, new[0].dtype):
            was.detach().copy_(new[0])
            for group, key, _ in places:
                group[key] = was


def placed(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return a state with the tensors on their devices that torch would leave where they were read.

    Options, and a state of all parameters, which text is the key of, go where the optimizer has
    them. If it has none yet, the state goes to the parameters, but for the bytes of generators.
    """
    own: Mapping[Any, Any] = optimizer.state
    new = {key: x for key, x in state["state"].items() if type(key) is str and key not in own}
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    cpu = torch.device("cpu")
    new = placed_states(new, left_on_cpu(new, cpu), next((p.device for p in parameters), cpu))
    known = {key: own[key] for key in state["state"] if key in own}
    moments = beside({**state["state"], **new}, known, to_device_of)
    pairs = zip(state["param_groups"], optimizer.param_groups, strict=True)
    groups = [beside(given, now, to_device_of) for given, now in pairs]
    return {**state, "state": moments, "param_groups": groups}


def misstated_moment(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> str | None:
    """Return which moment a state has other numbers of than the optimizer, None if none.

    A ``state_dict`` of its own may round them, so that a run that goes on is another one.
    """
    for place, entry, told in _entries(state, optimizer):
        for key, own, kept in paired(entry, told):
            if kept is not None and own is not kept and not _is_same(own, kept):
                where = f"{key} of parameter {place}"
                return f"the state_dict of the optimizer has other numbers than {where}"
    return None


def _entries(
    state: Mapping[str, Any], optimizer: torch.optim.Optimizer
) -> Iterator[tuple[Any, dict[str, Any], Mapping[str, Any]]]:
    """Yield each parameter's place, the optimizer's own state of it, and the one in ``state``."""
    places = [i for group in state["param_groups"] for i in group["params"]]
    own = [p for group in optimizer.param_groups for p in group["params"]]
    for place, p in zip(places, own, strict=False):
        kept, entry = state["state"].get(place), optimizer.state.get(p)
        if isinstance(kept, Mapping) and isinstance(entry, dict):
            yield place, entry, kept


def _in_type_of(own: Tensor, kept: Tensor) -> Tensor:
    return own if own.dtype == kept.dtype else kept.to(own.device, copy=True)


def _is_same(own: Tensor | None, kept: Tensor) -> bool:
    return own is not None and same_bits(own.detach().cpu(), kept.detach().cpu())
