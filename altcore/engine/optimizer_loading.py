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
    pairs = zip(optimizer.param_groups, state["param_groups"], strict=True)
    groups = [{k: _beside(own.get(k), x) for k, x in given.items()} for own, given in pairs]
    optimizer.load_state_dict({**state, "param_groups": groups})
    if type(optimizer).load_state_dict is torch.optim.Optimizer.load_state_dict:
        for _, entry, told in _entries(state, optimizer):
            for name in entry.keys() & told.keys():
                entry[name] = _in_own_type(entry[name], told[name])
    now = optimizer.state_dict()["state"]
    for place, entry in state["state"].items():
        for name, own, kept in _pairs(now.get(place), entry):
            if not _is_same(own, kept):
                problem = f"it did not take {name} of parameter {place} from the checkpoint"
                raise BadInput(problem, key=key, hint="mend its load_state_dict")


def misstated_moment(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> str | None:
    """Return which moment a state has other numbers of than the optimizer, None if none.

    A ``state_dict`` of its own may round them, so that a run that goes on is another one.
    """
    for place, entry, told in _entries(state, optimizer):
        for key, own, kept in _pairs(entry, told):
            if isinstance(own, Tensor) and own is not kept and not _is_same(own, kept):
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


def _pairs(own: Any, kept: Any, *keys: Any) -> Iterator[tuple[str, Any, Tensor]]:
    """Yield each tensor of a kept state, at every depth, with its name and what is there now."""
    if isinstance(kept, Tensor):
        yield ".".join(map(str, keys)), own, kept
    elif isinstance(kept, Mapping):
        for key, value in kept.items():
            yield from _pairs(own.get(key) if isinstance(own, Mapping) else None, value, *keys, key)
    elif isinstance(kept, list | tuple):
        is_alike = isinstance(own, list | tuple) and len(own) == len(kept)
        for i, value in enumerate(kept):
            yield from _pairs(own[i] if is_alike else None, value, *keys, i)


def _in_own_type(own: Any, kept: Any) -> Any:
    """Return what an optimizer loaded, its tensors at every depth in the types that were kept."""
    if isinstance(own, Tensor) and isinstance(kept, Tensor):
        return own if own.dtype == kept.dtype else kept.to(own.device, copy=True)
    if isinstance(own, dict) and isinstance(kept, Mapping):
        return {k: _in_own_type(x, kept.get(k)) for k, x in own.items()}
    if isinstance(own, list | tuple) and isinstance(kept, list | tuple) and len(own) == len(kept):
        return type(own)(map(_in_own_type, own, kept))
    return own


def _beside(own: Any, kept: Any) -> Any:
    """Return an option on the device of the one that is there, as torch leaves it on the CPU."""
    both = isinstance(own, Tensor) and isinstance(kept, Tensor)
    return kept.to(own.device) if both else kept


def _is_same(own: Any, kept: Tensor) -> bool:
    return isinstance(own, Tensor) and same_bits(own.detach().cpu(), kept.detach().cpu())
