"""Gradients in the checkpoints of a loop of your own, which may accumulate them across a save."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from altcore.errors import InvalidCheckpoint


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the gradients that a loop has not set to None, by the names of their parameters."""
    named = model.named_parameters()
    return {name: p.grad.detach() for name, p in named if p.grad is not None}


def check_gradients(kept: Mapping[str, Any], model: nn.Module) -> None:
    """Raise `InvalidCheckpoint` if a gradient is not one of its parameter."""
    parameters = dict(model.named_parameters())
    for name, grad in kept.items():
        p, is_tensor = parameters.get(name), isinstance(grad, Tensor)
        dtype = getattr(p, "grad_dtype", getattr(p, "dtype", None))  # None if any will do
        if p is None:
            raise InvalidCheckpoint(f"{name}, which has a gradient, is no parameter of the model")
        if not is_tensor or grad.shape != p.shape or dtype not in (grad.dtype, None):
            raise InvalidCheckpoint(f"the gradient of {name} does not fit the parameter")


def put_gradients(model: nn.Module, kept: Mapping[str, Tensor]) -> None:
    """Give each parameter the gradient that it had, None if it had none.

    A gradient that is there is written to: it may be a part of a memory that the loop clears.
    """
    for name, p in model.named_parameters():
        own, known = p.grad, kept.get(name)
        if own is None or known is None or not _is_alike(own, known):
            p.grad = None if known is None else known.to(p.device, copy=True)
        else:
            own.detach().copy_(known)


def _is_alike(own: Tensor, known: Tensor) -> bool:
    is_dense = own.layout == known.layout == torch.strided
    return is_dense and (own.shape, own.dtype) == (known.shape, known.dtype)
