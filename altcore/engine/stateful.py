"""What else a loop keeps: schedulers, samplers, averages, whatever states and loads its state."""

from __future__ import annotations

import copy
from collections.abc import Container, Iterator, Mapping
from contextlib import suppress
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from altcore.builtin_types import as_builtin, nested_too_deeply
from altcore.engine.finite import has_nan, is_finite
from altcore.engine.state_checks import numbers_of
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


def not_finite_among(
    states: Mapping[str, Any], also: Mapping[str, Stateful], unwatched: Container[str] = ()
) -> str | None:
    """Return the name of the first tensor that is no number to go on from, None if all are.

    Parameters and running statistics of a module and moments of an optimizer are finite. Another
    tensor, as the best loss before there is one, may be infinite, but not NaN.

    Args:
        states: what `states_of` returned.
        also: of which they are.
        unwatched: what `unwatched_among` returned before training; these may be anything.
    """
    for name, part in also.items():
        numbers = _numbers(part)
        for label, keys, x in _tensors_of(name, states[name]["state"]):
            is_moment = isinstance(part, Optimizer) and keys[:1] == ("state",)
            is_number = is_moment or (keys and keys[-1] in numbers)
            is_bad = not is_finite(x) if is_number else has_nan(x)
            if is_bad and label not in unwatched:
                return label
    return None


def unwatched_among(also: Mapping[str, Stateful]) -> frozenset[str]:
    """Return the names of tensors that are not finite now, before training."""
    with suppress(Exception):  # one may have no state yet
        states = states_of(also)
        every = (held for name in also for held in _tensors_of(name, states[name]["state"]))
        return frozenset(label for label, _, x in every if not is_finite(x))
    return frozenset()


def _numbers(part: Stateful) -> set[str]:
    """Return the names of a module's parameters and running statistics."""
    module = part.model if isinstance(part, Quantization) else part
    return set(numbers_of(module)) if isinstance(module, nn.Module) else set()


def _tensors_of(name: str, state: Any, *keys: Any) -> Iterator[tuple[str, tuple[Any, ...], Tensor]]:
    """Yield what each tensor with numbers of floating point is called, its keys, and it."""
    if isinstance(state, Tensor):
        has_numbers = not (is_lazy(state) or state.is_meta)
        if has_numbers and (state.is_floating_point() or state.is_complex()):
            label = f"{'.'.join(map(str, keys))} of also.{name}" if keys else f"also.{name}"
            yield label, keys, state
        return
    parts = state.items() if isinstance(state, Mapping) else ()
    for key, held in enumerate(state) if isinstance(state, list | tuple) else parts:
        yield from _tensors_of(name, held, *keys, key)


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
