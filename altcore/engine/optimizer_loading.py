"""An optimizer's state, stated and loaded without a bit of it changed, or named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

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
    optimizer.load_state_dict(dict(state))
    if type(optimizer).load_state_dict is torch.optim.Optimizer.load_state_dict:
        for _, entry, name, kept in _pairs(state, optimizer):
            own = entry.get(name)
            if isinstance(own, Tensor) and own.dtype != kept.dtype:
                entry[name] = kept.to(own.device, copy=True)
    now = optimizer.state_dict()["state"]
    for place, entry in state["state"].items():
        for name, kept in entry.items() if isinstance(entry, Mapping) else ():
            found = now.get(place)
            own = found.get(name) if isinstance(found, Mapping) else None
            if isinstance(kept, Tensor) and not _is_same(own, kept):
                problem = f"it did not take {name} of parameter {place} from the checkpoint"
                raise BadInput(problem, key=key, hint="mend its load_state_dict")


def misstated_moment(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> str | None:
    """Return which moment a state has other numbers of than the optimizer, None if none.

    A ``state_dict`` of its own may round them, so that a run that goes on is another one.
    """
    for place, entry, key, kept in _pairs(state, optimizer):
        own = entry.get(key)
        if isinstance(own, Tensor) and own is not kept and not _is_same(own, kept):
            return (
                f"the state_dict of the optimizer has other numbers than {key} of parameter {place}"
            )
    return None


def _pairs(
    state: Mapping[str, Any], optimizer: torch.optim.Optimizer
) -> Iterator[tuple[Any, dict[str, Any], str, Tensor]]:
    """Yield each tensor of a state, with its parameter's place and the optimizer's own entry."""
    places = [i for group in state["param_groups"] for i in group["params"]]
    own = [p for group in optimizer.param_groups for p in group["params"]]
    for place, p in zip(places, own, strict=False):
        kept, entry = state["state"].get(place), optimizer.state.get(p)
        if isinstance(kept, Mapping) and isinstance(entry, dict):
            yield from ((place, entry, k, x) for k, x in kept.items() if isinstance(x, Tensor))


def _is_same(own: Any, kept: Tensor) -> bool:
    return isinstance(own, Tensor) and same_bits(own.detach().cpu(), kept.detach().cpu())
