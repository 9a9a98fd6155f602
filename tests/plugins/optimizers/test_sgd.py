"""The optimizer plugin ``sgd``."""

import pytest
import torch
from helpers_optimizers import GRADIENTS, RATES, check_follows
from planted import check_resumes_alike, last_loss
from torch import nn

from altcore import BadInput
from altcore.hooks import build as build_settings
from altcore_optimizers.sgd import Sgd


def build(named, **settings):
    return build_settings(Sgd, settings, "sgd").build(named, lambda p: None)


def reference(value, gradients, rates, decay, momentum, nesterov):
    """SGD on one number, written out; returns the value after each step."""
    buffer, path = None, []
    for g, lr in zip(gradients, rates, strict=True):
        g = g + decay * value
        buffer = g if buffer is None else momentum * buffer + g
        value -= lr * (g + momentum * buffer if nesterov else buffer)
        path.append(value)
    return path


@pytest.mark.parametrize("shape", [(1, 1), (1,)], ids=["matrix", "vector"])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.8, False), (0.8, True)])
def test_follows_its_formula_step_by_step(shape, momentum, nesterov):
    """Matrices decay, vectors do not; the learning rate is that of the very step."""
    settings = {"momentum": momentum, "nesterov": nesterov, "weight_decay": 0.3}
    decay = 0.3 if len(shape) == 2 else 0.0
    expected = reference(0.75, GRADIENTS, RATES, decay, momentum, nesterov)
    check_follows(build, shape, settings, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_moves_every_weight_of_16_bits(dtype):
    """PyTorch's fused kernel for CPUs leaves out whole vectors of them."""
    weight = nn.Parameter(torch.ones(64, 64, dtype=dtype))
    optimizer = build([("w", weight)], momentum=0.9, weight_decay=0.0)
    for group in optimizer.param_groups:
        group["lr"] = 0.125
    for _ in range(2):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    expected = torch.tensor(1 - 0.125 - 0.125 * 1.9, dtype=torch.float32)
    assert torch.allclose(weight.float(), expected, atol=0.01)


def test_is_that_of_torch():
    """The class itself, with no learning rate of its own."""
    optimizer = build([("w", nn.Parameter(torch.ones(2, 2)))])
    assert type(optimizer) is torch.optim.SGD
    assert [g["lr"] for g in optimizer.param_groups] == [0.0]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"momentum": 0.0, "nesterov": True}, "sgd.nesterov: there is no momentum"),
        ({"momentum": 1.0}, "sgd.momentum"),
        ({"weight_decay": -1.0}, "sgd.weight_decay"),
    ],
)
def test_impossible_settings_are_refused(settings, match):
    """By name."""
    with pytest.raises(BadInput, match=match):
        build([("w", nn.Parameter(torch.ones(2, 2)))], **settings)


def test_a_model_without_trainable_parameters_is_refused():
    """Naming the optimizer."""
    with pytest.raises(BadInput, match="sgd: the model has no parameter"):
        build([("w", nn.Parameter(torch.zeros(2), requires_grad=False))])


def test_a_run_learns(start):
    """A tiny model's loss more than halves."""
    assert last_loss(start(optimizer="sgd", learning_rate=0.1, max_steps=60)) < 2.8  # from 5.55


def test_resumes_alike(shelf, start):
    """The momentum is part of the state."""
    check_resumes_alike(shelf, start, [], optimizer="sgd", learning_rate=0.1, format="E3M4")
