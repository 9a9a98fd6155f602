"""Running the model without leaving a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from altcore.engine.buffers import is_expanded
from altcore.engine.randomness import random_state, set_random_state
from altcore.quantization import Quantization


@contextmanager
def probing(model: nn.Module, quantization: Quantization, device: torch.device) -> Iterator[None]:
    """Let the model be run and differentiated, and put everything back afterwards.

    Random states, quantizers' scales and counters, buffers, training mode and ``.grad``
    are restored, so that looking changes no weight.
    """
    parameters = list(model.parameters())
    grads = [p.grad for p in parameters]
    owners = [m for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
    buffers = [(m, dict(m._buffers)) for m in owners]
    values = [(b, b.detach().clone()) for b in model.buffers() if not is_expanded(b)]
    modes = [(m, m.training) for m in model.modules()]
    random = random_state(device)
    for p in parameters:
        p.grad = None
    try:
        with quantization.frozen():
            yield
    finally:
        set_random_state(random, device)
        for p, g in zip(parameters, grads, strict=True):
            p.grad = g
        for module, own in buffers:
            if list(map(id, module._buffers.values())) != list(map(id, own.values())):
                module._buffers.clear()  # the model put others in their places
                module._buffers.update(own)
        for buffer, value in values:
            # By way of data: a backward pass that waits for the buffer sees it unchanged.
            if buffer.shape == value.shape:
                buffer.data.copy_(value)
            else:  # it grew in its place
                buffer.data = value
        for module, mode in modes:
            module.training = mode
