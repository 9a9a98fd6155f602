"""States of plugins in a checkpoint: on which device they were, and whether plugins can take them.

They are tried on new plugins before anything of the run changes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from altcore.engine.named_errors import naming
from altcore.engine.plugins import Plugin
from altcore.errors import AltcoreError, InvalidCheckpoint

KINDS: tuple[tuple[type, ...], ...] = ((bool, int, float, Tensor), (str,), (list, tuple), (dict,))
"""Types of which one may take the place of another in a state."""


class RefusedState(InvalidCheckpoint):
    """A plugin that cannot take its state: an earlier checkpoint may have one that it can."""

    def __init__(self, plugin: Plugin, problem: str) -> None:
        super().__init__(f"{plugin} cannot take its state: {problem}")
        self.plugin = plugin


def left_on_cpu(states: Mapping[str, Any], device: torch.device) -> dict[str, list[int]]:
    """Return which tensors of each plugin's state a run on another ``device`` has on the CPU.

    They are given by their places among the leaves of the state.
    """
    if device.type == "cpu":
        return {}
    return {
        name: [i for i, leaf in enumerate(tree_leaves(state)) if _is_on_cpu(leaf)]
        for name, state in states.items()
    }


def placed_states(
    states: Mapping[str, Any], on_cpu: Mapping[str, Sequence[int]], device: torch.device
) -> dict[str, Any]:
    """Return plugins' states with their tensors, read into the CPU's memory, where they were.

    That is the run's ``device`` but for those that `left_on_cpu` named. A run on a CPU names none:
    if it goes on elsewhere, all of them move.
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


def _is_on_cpu(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.device.type == "cpu"


def check_plugin_states(state: Mapping[str, Any], plugins: Sequence[Plugin]) -> None:
    """Raise `RefusedState` if a plugin cannot take its state in a checkpoint.

    A plugin that the run has disabled is not asked.
    """
    for own in state["ranks"]:
        states = own["plugins"]
        for plugin in plugins:
            if plugin.name in states and plugin.name not in state["degraded"]:
                _try(plugin, states[plugin.name])


def _try(plugin: Plugin, state: Any) -> None:
    if not hasattr(plugin.instance, "load_state_dict"):
        return
    tried = plugin.made_anew()
    try:
        with naming(str(plugin), "state_dict"):
            before = tried.state_dict()
    except AltcoreError:  # it may need a run that has started
        before = {}
    for key, value in before.items() if isinstance(state, Mapping) else ():
        if value is not None and state.get(key) is not None and _kind(state[key]) != _kind(value):
            problem = f"{key} is {type(state[key]).__name__}, not {type(value).__name__}"
            raise RefusedState(plugin, problem)
    try:
        with naming(str(plugin), "load_state_dict"):
            tried.load_state_dict(copy.deepcopy(state))  # it may take it apart
    except AltcoreError as error:
        problem = str(error).removeprefix(f"{plugin} failed in load_state_dict: ")
        raise RefusedState(plugin, problem) from error


def _kind(value: Any) -> Any:
    return next((kinds for kinds in KINDS if isinstance(value, kinds)), type(value))
