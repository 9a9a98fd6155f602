"""An optimizer in the checkpoints of a loop of your own, be it the only one or one of several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from altcore.builtin_types import as_builtin, nested_too_deeply
from altcore.engine.finite import has_nan, is_finite
from altcore.engine.hidden_state import optimizer_parts
from altcore.engine.labels import Kept, within
from altcore.engine.optimizer_checks import (
    check_layout,
    check_optimizer,
    layout_of,
    outside,
    take_order,
)
from altcore.engine.optimizer_loading import load_optimizer, misstated_moment
from altcore.engine.state_checks import fitting
from altcore.engine.state_tensors import named_tensors
from altcore.errors import BadInput

OF_TORCH = ("state", "param_groups")
"""What torch's ``state_dict`` of an optimizer has; one of its own may have something else."""


@frozen(eq=False)
class KeptOptimizer(Kept):
    """All that a checkpoint has of an optimizer."""

    optimizer: torch.optim.Optimizer
    names: Mapping[int, str]
    """Of the parameters of all modules of the loop, by id."""

    def state(self) -> dict[str, Any]:
        """Return its state, and the layout of that; `BadInput` if no file can hold it."""
        kept = self.optimizer.state_dict()
        if problem := nested_too_deeply(kept):
            raise BadInput(f"its state {problem}", key=self.key)
        moments = as_builtin(kept)
        layout = layout_of(_of_torch(moments), self.optimizer, self.names)
        return {"optimizer": moments, "optimizer_layout": layout}

    def check_stated(self, state: Mapping[str, Any], others: Sequence[Tensor]) -> None:
        """Raise `BadInput` if it has or moves what no checkpoint holds.

        ``others`` are the tensors in states of what is neither a module nor an optimizer.
        """
        if hidden := optimizer_parts(self.optimizer):
            problem = f"it keeps state in {', '.join(hidden)}, which its state_dict leaves out"
            hint = "give it a state_dict and a load_state_dict that have all of it"
            raise BadInput(problem, key=self.key, hint=hint)
        if wrong := misstated_moment(self.optimizer, _of_torch(state["optimizer"])):
            raise BadInput(wrong, key=self.key)
        if foreign := outside(self.optimizer, self.names, others):
            hint = "give the model that has all that the optimizer moves, or name it in also"
            raise BadInput(foreign, key=self.key, hint=hint)

    def not_finite(self, state: Mapping[str, Any]) -> str | None:
        """Return the name of the first number that is none to go on from, None if all are.

        Moments are finite. A setting may be infinite, but not NaN.
        """
        kept, names = state["optimizer"], state["optimizer_layout"]["parameters"]
        for i, group in enumerate(_of_torch(kept)["param_groups"]):
            for key, value in group.items():
                if _has_nan(value):
                    return f"{key} of {self.label}'s group {i}"
        for place, moments in _of_torch(kept)["state"].items():
            for key, value in named_tensors(moments):
                if not is_finite(value):
                    name = names[place] if place in range(len(names)) else None
                    return f"{key} of {self.label}'s parameter {name or place}"
        more = {key: value for key, value in kept.items() if key not in OF_TORCH}
        found = (within(name, self.label) for name, x in named_tensors(more) if has_nan(x))
        return next(found, None)

    def check(self, state: Mapping[str, Any]) -> list[tuple[Tensor, Mapping[str, Any]]]:
        """Return each parameter that has moments, and these; `BadInput` if they do not fit.

        The parameters of a group are put in the order that they had, unless the state has a form
        of its own.
        """
        kept = _of_torch(state["optimizer"])
        is_torchs = kept is state["optimizer"]
        with fitting(self.key):
            if is_torchs:
                take_order(state["optimizer_layout"], self.optimizer, self.names)
            moments = check_optimizer(kept, self.optimizer) if is_torchs else []
            check_layout(state["optimizer_layout"], kept, self.optimizer, self.names)
        return moments

    def restore(self, state: Mapping[str, Any]) -> None:
        """Load a state that was checked."""
        kept = state["optimizer"]
        if kept is _of_torch(kept):
            # What a scheduler has put into a group stays, if the checkpoint knows nothing of it.
            pairs = zip(self.optimizer.param_groups, kept["param_groups"], strict=True)
            groups = [{**own, **given} for own, given in pairs]
            load_optimizer(self.optimizer, {**kept, "param_groups": groups}, self.key)
        else:
            self.optimizer.load_state_dict(kept)


def _of_torch(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a state if it has the form of torch's; an empty one of another."""
    return state if state.keys() >= {*OF_TORCH} else {"state": {}, "param_groups": []}


def _has_nan(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_has_nan, value))
    if isinstance(value, float):
        return math.isnan(value)
    return any(has_nan(x) for _, x in named_tensors(value))
