"""Whether the optimizer that a loop saves is the one that moves its weights."""

from __future__ import annotations

from typing import Any
from weakref import finalize

import torch
from torch import nn
from torch.nn.parameter import is_lazy


class StepWatch:
    """Counts the steps of an optimizer, and notices weights that move without one.

    Its hook goes with it, or when it is closed; the next question begins anew.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._model, self._optimizer, self._steps = model, optimizer, Count()
        self._begin()

    def _begin(self) -> None:
        hook = self._optimizer.register_step_post_hook(self._steps)
        self._hook = finalize(self, hook.remove)
        self._before = self._now()

    def _now(self) -> tuple[int, int]:
        weights = (p for p in self._model.parameters() if not (is_lazy(p) or p.is_inference()))
        return self._steps.made, sum(p._version for p in weights)

    def is_by_another(self) -> bool:
        """Whether the weights moved since the last call, and the optimizer made no step."""
        if not self._hook.alive:
            self._begin()
        before, self._before = self._before, self._now()
        return before[0] == self._steps.made and before != self._before

    def close(self) -> None:
        """Remove the hook."""
        self._hook()


class Count:
    """A hook that counts its calls, and knows nothing else: the optimizer keeps it alive."""

    made = 0

    def __call__(self, *_: Any) -> None:
        """Count one."""
        self.made += 1
