"""What else a loop keeps: schedulers, samplers, scalers, whatever states and loads its state."""

from __future__ import annotations

import math
import sys
from collections.abc import Container, Mapping
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any, Protocol, runtime_checkable

import torch
from attrs import frozen

from altcore.builtin_types import as_builtin, nested_too_deeply
from altcore.engine.finite import has_nan, is_finite
from altcore.engine.labels import Kept, within
from altcore.engine.state_tensors import named_tensors
from altcore.errors import BadInput


@runtime_checkable
class Stateful(Protocol):
    """Has a state, as torch's schedulers and modules do."""

    def state_dict(self) -> Any:
        """Return the state."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Take it."""


@frozen(eq=False)
class KeptObject(Kept):
    """All that a checkpoint has of what is neither a module nor an optimizer."""

    object: Stateful

    def state(self) -> Any:
        """Return its state; `BadInput` if no file can hold it, or it is in the middle of a step."""
        state = self.object.state_dict()
        if problem := nested_too_deeply(state):
            raise BadInput(f"its state {problem}", key=self.key)
        return _encoded(state)

    def restore(self, state: Any) -> None:
        """Load a state."""
        self.object.load_state_dict(_decoded(state))

    def check_between_steps(self) -> None:
        """Raise `BadInput` if it scales gradients, and has begun a step."""
        # torch resets what it keeps of optimizers in `GradScaler.update`.
        if isinstance(self.object, torch.amp.GradScaler) and self.object._per_optimizer_states:
            problem = "it has unscaled the gradients of this step, and update() is still to come"
            raise BadInput(problem, key=self.key, hint="save after scaler.update()")

    def unwatched(self) -> frozenset[str]:
        """Return the names of tensors that are not finite now."""
        with suppress(Exception):  # it may have no state yet
            tensors = named_tensors(self.object.state_dict())
            return frozenset(self._name(name) for name, x in tensors if not is_finite(x))
        return frozenset()

    def not_finite(self, state: Any, unwatched: Container[str]) -> str | None:
        """Return the name of the first number that is none to go on from, None if all are.

        A tensor, as the best loss before there is one, may be infinite, but not NaN; and anything
        if it is ``unwatched``. The scale of gradients is finite.
        """
        if isinstance(self.object, torch.amp.GradScaler):
            scale = state.get("scale", 1.0)
            if not (isinstance(scale, float | int) and math.isfinite(scale)):
                return within("the gradients' scale", self.label)
        tensors = ((self._name(name), x) for name, x in named_tensors(state))
        return next((n for n, x in tensors if n not in unwatched and has_nan(x)), None)

    def _name(self, name: str) -> str:
        return within(name, self.label) if name else self.label


NUMPY, PATH = "altcore.numpy", "altcore.path"
"""Keys of what stands for a number of numpy's, with its dtype and bytes, and for a path."""


def _encoded(value: Any) -> Any:
    """Return numpy's numbers and paths as plain data, of which `_decoded` makes them again.

    A number of Python's in the place of a float32 would compute with more bits.
    """
    numpy = sys.modules.get("numpy")  # if its numbers exist, somebody imported it
    if numpy is not None and isinstance(value, numpy.generic):
        is_number = value.dtype.kind in "biufcMm"
        return {NUMPY: value.dtype.str, "bytes": value.tobytes()} if is_number else value.item()
    if isinstance(value, PurePath):
        return {PATH: str(value)}
    if type(value) in (list, tuple):
        return type(value)(map(_encoded, value))
    if type(value) is dict:
        return {as_builtin(k): _encoded(v) for k, v in value.items()}
    return value


def _decoded(value: Any) -> Any:
    if type(value) in (list, tuple):
        return type(value)(map(_decoded, value))
    if type(value) is not dict:
        return value
    if NUMPY in value:
        import numpy

        return numpy.frombuffer(value["bytes"], value[NUMPY])[0]
    if PATH in value:
        return Path(value[PATH])
    return {k: _decoded(v) for k, v in value.items()}


def check_fits(kept: Mapping[str, str], given: Mapping[str, str]) -> None:
    """Raise `BadInput` unless what is kept, by name, is given, and of the same class."""
    for name, is_now in given.items():
        if name not in kept:
            raise BadInput("the checkpoint holds none", key=f"also.{name}")
        if kept[name] != is_now:
            problem = f"the checkpoint is of {kept[name]}, and it is {is_now}"
            raise BadInput(problem, key=f"also.{name}")
    for name in kept:
        if name not in given:
            hint = f"pass it: also={{{name!r}: ...}}"
            problem = "the checkpoint holds one, and none is given"
            raise BadInput(problem, key=f"also.{name}", hint=hint)
