"""Recent states of a run, kept on the device so that it can be rolled back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from altcore.engine.labels import MODEL
from altcore.engine.model_state import drop_buffers, put_model, unsaved_buffers
from altcore.engine.optimizer_loading import load_optimizer
from altcore.engine.shared_memory import Shared, shared_in
from altcore.quantization import Quantization


@frozen(eq=False)
class Snapshot:
    """Model, optimizer, recipe and quantization state, as they were after ``step``."""

    step: int
    """The step after which it was taken."""
    weights: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor | None]
    """Those that ``weights`` lack."""
    optimizer: Mapping[str, Any]
    quantization: Mapping[str, Any]
    watched: Sequence[str]
    """The names of weights and buffers that are to be finite, by `WeightCheck`."""
    shared: Shared | None = None
    """Which weights and buffers shared their memory; an earlier altcore did not record it."""

    @classmethod
    def take(
        cls,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        quantization: Quantization,
        watched: Sequence[str],
    ) -> Snapshot:
        """Copy the state as it is now."""
        weights, moments = copied(model.state_dict()), copied(optimizer.state_dict())
        buffers = copied(unsaved_buffers(model, weights))
        scales, shared = quantization.state_dict(), shared_in({MODEL: model})
        return cls(step, weights, buffers, moments, scales, watched, shared)

    def restore(self, optimizer: torch.optim.Optimizer, quantization: Quantization) -> None:
        """Put the state back, the model's weights with the quantization's."""
        state = {
            "model": self.weights,
            "buffers": self.buffers,
            "shared": self.shared,
            "quantization": self.quantization,
        }
        put_model(quantization.model, quantization, state)
        later = unsaved_buffers(quantization.model, self.weights).keys() - self.buffers.keys()
        drop_buffers(quantization.model, later)
        load_optimizer(optimizer, copied(self.optimizer))

    def is_finite(self) -> bool:
        """Whether all that is watched is finite; a host read, made only when a rollback asks."""
        watched = [self.weights[name] for name in self.watched if name in self.weights]
        flags = [torch.isfinite(tensor).all() for tensor in watched]
        return bool(torch.stack(flags).all()) if flags else True


def copied(value: Any, device: str | None = None) -> Any:
    """Return a state with copies of its tensors, on ``device`` if one is given."""
    if isinstance(value, Tensor):
        return value.detach().to(device, copy=True)
    if isinstance(value, Mapping):
        return {k: copied(v, device) for k, v in value.items()}
    if isinstance(value, list | tuple):
        made = [copied(v, device) for v in value]
        return tuple(made) if isinstance(value, tuple) else made
    return value
