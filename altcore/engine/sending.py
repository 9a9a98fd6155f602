"""Weights and buffers as the bytes that ranks send one another, of whatever type they are."""

from __future__ import annotations

import torch
from torch import Tensor

from altcore.errors import BadInput


def check_sent(name: str, x: Tensor) -> None:
    """Raise `BadInput` for a tensor that has no plain memory, as a sparse one."""
    if x.layout != torch.strided:
        kind = str(x.layout).removeprefix("torch.")
        problem = f"{name} is {kind}, which several processes cannot send one another"
        raise BadInput(problem, key="model", hint="make it dense, or train in one process")


def as_bytes(name: str, x: Tensor) -> Tensor:
    """Return the bytes of a tensor, in one dimension; gloo knows few types, but bytes."""
    check_sent(name, x)
    plain = _written(x).resolve_conj().resolve_neg().contiguous()
    return plain.flatten().view(torch.uint8)


def put_bytes(x: Tensor, sent: Tensor) -> None:
    """Let a tensor have the bytes that `as_bytes` made of another rank's."""
    own = _written(x)
    own.copy_(sent.view(own.dtype).view(own.shape))


def _written(x: Tensor) -> Tensor:
    """Return a tensor without the dimensions in which it repeats the same memory."""
    x = x.detach()
    for dim, stride in enumerate(x.stride()):
        if stride == 0:
            x = x.narrow(dim, 0, min(x.shape[dim], 1))
    return x
