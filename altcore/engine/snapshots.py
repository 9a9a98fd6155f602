"""Recent states of a run, kept on the device so that it can be rolled back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from altcore.quantization import Quantization


@frozen(eq=False)
class Snapshot:
    """Model, optimizer, recipe and quantization state, as they were after ``step``."""

    step: int
    """The step after which it was taken."""
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    quantization: Mapping[str, Any]

    @classmethod
    def take(
        cls,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        quantization: Quantization,
    ) -> Snapshot:
        """Copy the state as it is now."""
        weights, moments = _copy(model.state_dict()), _copy(optimizer.state_dict())
        return cls(step, weights, moments, quantization.state_dict())

    def restore(self, optimizer: torch.optim.Optimizer, quantization: Quantization) -> None:
        """Put the state back, the model's weights with the quantization's."""
        quantization.load_state_dict(self.quantization, self.weights)
        optimizer.load_state_dict(_copy(self.optimizer))


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {k: _copy(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_copy(v) for v in value]
    return value
