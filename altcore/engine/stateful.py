"""What else a loop keeps: schedulers, samplers, averages, whatever states and loads its state."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import nn

from altcore.builtin_types import as_builtin, nested_too_deeply
from altcore.errors import BadInput, described, shown
from altcore.quantization import Quantization, is_quantized


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
        if isinstance(part, Quantization) and part.is_removed:
            raise BadInput("it was removed from its model", key=f"also.{name}")
    kept = [part.model for part in also.values() if isinstance(part, Quantization)]
    for name, part in also.items():
        if isinstance(part, nn.Module) and is_quantized(part) and part not in kept:
            problem = "the model is quantized, and its scales and random bits would be lost"
            hint = "add the q that altcore.quantize_model returned for it"
            raise BadInput(problem, key=f"also.{name}", hint=hint)
    return dict(also)


def states_of(also: Mapping[str, Stateful]) -> dict[str, Any]:
    """Return the state of each, with its class."""
    states = {name: _state(part) for name, part in also.items()}
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
    before = {name: copy.deepcopy(_state(part)) for name, part in also.items()}
    for name, part in also.items():
        try:
            _load(part, kept[name]["state"])
        except Exception as error:
            for other, state in before.items():
                _load(also[other], state)
            problem = f"it did not take its state: {described(error)}"
            raise BadInput(problem, key=f"also.{name}") from error


def _state(part: Stateful) -> Any:
    """Return a state; the quantization of another model has the weights on its grids with it."""
    if isinstance(part, Quantization):
        return {"quantization": part.state_dict(), "weights": part.model.state_dict()}
    return part.state_dict()


def _load(part: Stateful, state: Any) -> None:
    if isinstance(part, Quantization):
        part.load_state_dict(state["quantization"], state["weights"])
    else:
        part.load_state_dict(state)
