"""The tensors of a state, at every depth: by name, beside those of another, and on which device."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten


def named_tensors(state: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor with numbers of floating point, with its name."""
    for keys, x in _tensors(state):
        has_numbers = not (is_lazy(x) or x.is_meta)
        if has_numbers and (x.is_floating_point() or x.is_complex()):
            yield _name(keys), x


def paired(state: Any, other: Any) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """Yield each tensor with its name, and the one that another state has in its place."""
    there = dict(_tensors(other))
    for keys, x in _tensors(state):
        yield _name(keys), x, there.get(keys)


def beside(state: Any, other: Any, made: Callable[[Tensor, Tensor], Tensor]) -> Any:
    """Return a state whose tensors are ``made`` of it and of what another has in their places."""
    there = dict(_tensors(other))

    def at(value: Any, *keys: Any) -> Any:
        if isinstance(value, Tensor):
            return made(value, there[keys]) if keys in there else value
        if type(value) in (dict, OrderedDict):
            return type(value)((key, at(x, *keys, key)) for key, x in value.items())
        if type(value) in (list, tuple):
            return type(value)(at(x, *keys, i) for i, x in enumerate(value))
        return value

    return at(state)


def to_device_of(x: Tensor, other: Tensor) -> Tensor:
    """Return a tensor on the device of another."""
    return x.to(other.device)


Keys = tuple[Any, ...]


def _tensors(state: Any, *keys: Any) -> Iterator[tuple[Keys, Tensor]]:
    if isinstance(state, Tensor):
        yield keys, state
    parts = state.items() if isinstance(state, Mapping) else ()
    for key, held in enumerate(state) if isinstance(state, list | tuple) else parts:
        yield from _tensors(held, *keys, key)


def _name(keys: Keys) -> str:
    return ".".join(map(str, keys))


# On which device they were ------------------------------------------------------------------------


def left_on_cpu(states: Mapping[str, Any], device: torch.device) -> dict[str, list[int]]:
    """Return which tensors of each state do not follow what is trained on ``device`` to another.

    Those are the ones that are on the CPU beside it; of what is trained on a CPU the bytes alone,
    as generators have. They are given by their places among the leaves of the state.
    """

    def is_left(leaf: Any) -> bool:
        is_there = isinstance(leaf, Tensor) and leaf.device.type == "cpu"
        return is_there and (device.type != "cpu" or leaf.dtype == torch.uint8)

    return {
        name: [i for i, leaf in enumerate(tree_leaves(state)) if is_left(leaf)]
        for name, state in states.items()
    }


def placed_states(
    states: Mapping[str, Any], on_cpu: Mapping[str, Sequence[int]], device: torch.device
) -> dict[str, Any]:
    """Return states with their tensors, read into the CPU's memory, on the device for them.

    That is ``device`` but for those that `left_on_cpu` named.
    """
    moved = {}
    for name, state in states.items():
        leaves, form = tree_flatten(state)
        kept = on_cpu.get(name, ())
        placed = (
            leaf.to(device) if isinstance(leaf, Tensor) and i not in kept else leaf
            for i, leaf in enumerate(leaves)
        )
        moved[name] = tree_unflatten(placed, form)
    return moved
