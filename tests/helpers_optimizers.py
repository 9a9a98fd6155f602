"""What the tests of optimizers share: following a formula, and going on from a saved state."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

GRADIENTS, RATES = [0.5, -1.5, 0.01, 2.0], [0.1, 0.02, 0.0, 0.3]


def check_follows(build, shape, settings, expected):
    """Each step, at its own learning rate, brings a parameter of 0.75 to the expected value."""
    parameter = nn.Parameter(torch.full(shape, 0.75, dtype=torch.float64))
    optimizer = build([("w", parameter)], **settings)
    for gradient, rate, value in zip(GRADIENTS, RATES, expected, strict=True):
        parameter.grad = torch.full(shape, gradient, dtype=torch.float64)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        assert parameter.item() == pytest.approx(value, rel=1e-12)


def check_state_survives(build, then, offset=0.0):
    """An optimizer loaded from another's state takes the very same next step."""
    parameters = [nn.Parameter(torch.ones(3, 3)) for _ in range(2)]
    first, second = (build([("w", p)]) for p in parameters)
    gradient = torch.linspace(-1, 1, 9).view(3, 3)

    def step(parameter, optimizer, scale):
        parameter.grad = gradient * scale + offset
        optimizer.param_groups[0]["lr"] = 0.1
        optimizer.step()

    step(parameters[0], first, 1.0)
    with torch.no_grad():
        parameters[1].copy_(parameters[0])
    # PyTorch shares the tensors of a state that it loads; one from a file is a copy too.
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    step(parameters[0], first, then)
    step(parameters[1], second, then)
    assert torch.equal(*parameters)
