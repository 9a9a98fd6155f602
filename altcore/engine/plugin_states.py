"""Whether plugins can take their states in a checkpoint.

They are tried on new plugins before anything of the run changes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

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
