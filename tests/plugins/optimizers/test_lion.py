"""The optimizer plugin ``lion``."""

import math

import pytest
import torch
from helpers_diagnostics import NoHostRead
from helpers_optimizers import check_state_survives
from planted import check_resumes_alike, last_loss
from torch import nn

from altcore import BadInput
from altcore.hooks import build as build_settings
from altcore_optimizers.lion import Lion


def build(named, **settings):
    return build_settings(Lion, settings, "lion").build(named, lambda p: None)


def reference(value, gradients, rates, decay, beta1, beta2):
    """Algorithm 2 of the paper on one number; returns the value after each step."""
    momentum, path = 0.0, []
    for g, lr in zip(gradients, rates, strict=True):
        c = beta1 * momentum + (1 - beta1) * g
        sign = math.copysign(1.0, c) if c else 0.0
        value -= lr * (sign + decay * value)
        momentum = beta2 * momentum + (1 - beta2) * g
        path.append(value)
    return path


@pytest.mark.parametrize("shape", [(1, 1), (1,)], ids=["matrix", "vector"])
def test_follows_the_paper_step_by_step(shape):
    """With a sign that the momentum decides against the gradient, and one that is zero."""
    parameter = nn.Parameter(torch.full(shape, 0.75, dtype=torch.float64))
    settings = {"weight_decay": 0.3, "beta1": 0.8, "beta2": 0.5}
    optimizer = build([("w", parameter)], **settings)
    gradients, rates = [0.0, 3.0, -0.1, -2.0, 0.5], [0.2, 0.1, 0.02, 0.0, 0.3]
    decay = 0.3 if len(shape) == 2 else 0.0
    expected = reference(0.75, gradients, rates, decay, 0.8, 0.5)
    for gradient, rate, value in zip(gradients, rates, expected, strict=True):
        parameter.grad = torch.full(shape, gradient, dtype=torch.float64)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with NoHostRead():
            optimizer.step()
        assert parameter.item() == pytest.approx(value, rel=1e-12)


def test_every_element_moves_by_the_learning_rate():
    """Whatever the size of its gradient; without one, a parameter stays."""
    moved, still = (nn.Parameter(torch.zeros(3)) for _ in range(2))
    optimizer = build([("a", moved), ("b", still)])
    moved.grad = torch.tensor([1e-8, -1e8, 1.0])
    optimizer.param_groups[0]["lr"] = 0.25
    optimizer.step()
    assert moved.tolist() == [-0.25, 0.25, -0.25]
    assert still.tolist() == [0.0] * 3


def test_state_survives_a_save_and_a_load():
    """An optimizer loaded from another's state takes the very same next step."""
    check_state_survives(build, then=-0.05, offset=0.1)


@pytest.mark.parametrize("settings", [{"beta1": 1.0}, {"beta2": -0.1}, {"weight_decay": math.inf}])
def test_impossible_settings_are_refused(settings):
    """By name."""
    with pytest.raises(BadInput, match=f"lion.{next(iter(settings))}"):
        build([("w", nn.Parameter(torch.ones(2, 2)))], **settings)


def test_a_run_learns(start):
    """A tiny model's loss falls."""
    assert last_loss(start(optimizer="lion", learning_rate=3e-3, max_steps=60)) < 3.5  # from 5.55


def test_resumes_alike(shelf, start):
    """The momentum is part of the state."""
    check_resumes_alike(shelf, start, [], optimizer="lion", format="E3M4", recipe="pure")
