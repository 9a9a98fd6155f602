"""What else a loop keeps: schedulers, samplers, averages, whatever states and loads its state."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from altcore.builtin_types import as_builtin, nested_too_deeply
from altcore.errors import BadInput, described, shown


@runtime_checkable
class Stateful(Protocol):
    """Has a state, as torch's schedulers and modules do."""

    def state_dict(self) -> Any:
        """Return the state."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Take it."""


def check_stateful(also: Mapping[str, Any]) -> dict[str, Stateful]:
    """Return the objects by their names; `BadInput` for one without a state."""
    for name, part in also.items():
        if not isinstance(part, Stateful):
            problem = f"{shown(part)} has no state_dict and load_state_dict"
            raise BadInput(problem, key=f"also.{name}")
    return dict(also)


def states_of(also: Mapping[str, Stateful]) -> dict[str, Any]:
    """Return the state of each, with its class."""
    states = {name: part.state_dict() for name, part in also.items()}
    for name, state in states.items():
        if problem := nested_too_deeply(state):
            raise BadInput(f"its state {problem}", key=f"also.{name}")
    return {
        name: {"class": type(also[name]).__name__, "state": as_builtin(state)}
        for name, state in states.items()
    }


def check_states(kept: Mapping[str, Any], also: Mapping[str, Stateful]) -> None:
    """Raise `BadInput` unless each state is of one that is given, and the other way round."""
    for name, part in also.items():
        if name not in kept:
            raise BadInput("the checkpoint holds none", key=f"also.{name}")
        was, is_now = kept[name]["class"], type(part).__name__
        if was != is_now:
            problem = f"the checkpoint is of {was}, and it is {is_now}"
            raise BadInput(problem, key=f"also.{name}")
    for name in kept:
        if name not in also:
            hint = f"pass it: also={{{name!r}: ...}}"
            raise BadInput(
                "the checkpoint holds one, and none is given", key=f"also.{name}", hint=hint
            )


def load_states(kept: Mapping[str, Any], also: Mapping[str, Stateful]) -> None:
    """Give each its state; if one does not take it, `BadInput`, and all are as they were."""
    before = {name: copy.deepcopy(part.state_dict()) for name, part in also.items()}
    for name, part in also.items():
        try:
            part.load_state_dict(kept[name]["state"])
        except Exception as error:
            for other, state in before.items():
                also[other].load_state_dict(state)
            problem = f"it did not take its state: {described(error)}"
            raise BadInput(problem, key=f"also.{name}") from error
