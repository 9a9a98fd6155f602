"""Whether the optimizer that a loop saves is the one that moves its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class StepWatch:
    """Counts the steps of an optimizer, and notices weights that move without one."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._model, self._steps = model, 0
        optimizer.register_step_post_hook(self._count)
        self._before = self._now()

    def _count(self, *_: Any) -> None:
        self._steps += 1

    def _now(self) -> tuple[int, int]:
        weights = (p for p in self._model.parameters() if not p.is_inference())
        return self._steps, sum(p._version for p in weights)

    def is_by_another(self) -> bool:
        """Whether the weights moved since the last call, and the optimizer made no step."""
        before, self._before = self._before, self._now()
        return before[0] == self._steps and before != self._before
