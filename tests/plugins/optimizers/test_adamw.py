"""The optimizer plugin ``adamw``."""

import math

import pytest
import torch
from helpers_optimizers import GRADIENTS, RATES, check_follows, check_state_survives
from torch import nn

from altcore import BadInput
from altcore_optimizers.adamw import AdamW


def build(named, **settings):
    return AdamW(**settings).build(named, lambda p: None)


def reference(values, gradients, rates, decay, beta1, beta2, eps):
    """AdamW on one number, as the paper writes it; returns the value after each step."""
    value, first, second, path = values, 0.0, 0.0, []
    for t, (g, lr) in enumerate(zip(gradients, rates, strict=True), start=1):
        value -= lr * decay * value
        first = beta1 * first + (1 - beta1) * g
        second = beta2 * second + (1 - beta2) * g * g
        mean, square = first / (1 - beta1**t), second / (1 - beta2**t)
        value -= lr * mean / (math.sqrt(square) + eps)
        path.append(value)
    return path


@pytest.mark.parametrize("shape", [(1, 1), (1,)], ids=["matrix", "vector"])
def test_follows_the_paper_step_by_step(shape):
    """Each step equals AdamW written out by hand: matrices decay, vectors do not.

    The learning rate is the one that its caller set on the groups for that very step.
    """
    settings = {"weight_decay": 0.3, "beta1": 0.8, "beta2": 0.9, "eps": 1e-3}
    decay = 0.3 if len(shape) == 2 else 0.0
    expected = reference(0.75, GRADIENTS, RATES, decay, 0.8, 0.9, 1e-3)
    check_follows(build, shape, settings, expected)


def test_changes_nothing_until_a_learning_rate_is_set():
    """The engine owns the learning rate: as built, a step moves no weight, decay included."""
    parameter = nn.Parameter(torch.ones(2, 2))
    optimizer = build([("w", parameter)])
    parameter.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(parameter, torch.ones(2, 2))


def test_only_tensors_of_two_or_more_dimensions_decay():
    """Matrices and convolution kernels decay; biases, norms and scalars do not."""
    shapes = {"kernel": (2, 2, 2), "matrix": (2, 3), "bias": (3,), "scalar": ()}
    named = {name: nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}
    optimizer = build(named.items(), weight_decay=0.25)
    decay_of = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert {name: decay_of[id(p)] for name, p in named.items()} == {
        "kernel": 0.25,
        "matrix": 0.25,
        "bias": 0.0,
        "scalar": 0.0,
    }


def test_takes_a_tied_parameter_once_and_a_frozen_one_never():
    """A weight under two names is stepped once; one without requires_grad is not held at all."""
    tied = nn.Parameter(torch.zeros(2, 2))
    frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)
    optimizer = build([("wte", tied), ("frozen", frozen), ("lm_head", tied)])
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == 1
    assert held[0] is tied


def test_a_model_without_trainable_parameters_is_refused():
    """Nothing to train is bad input, not an empty optimizer."""
    frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)
    with pytest.raises(BadInput, match="no parameter that requires a gradient"):
        build([("w", frozen)])


def test_is_fused_where_pytorch_can_and_still_builds_where_it_cannot():
    """Floating point on the CPU is fused; a complex parameter falls back, and both step."""
    for dtype, fused in ((torch.float32, True), (torch.bfloat16, True), (torch.complex64, False)):
        parameter = nn.Parameter(torch.ones(2, 2, dtype=dtype))
        optimizer = build([("w", parameter)])
        assert optimizer.defaults["fused"] is fused
        parameter.grad = torch.ones_like(parameter)
        optimizer.param_groups[0]["lr"] = 0.5
        optimizer.step()
        assert not torch.equal(parameter, torch.ones_like(parameter))


def test_state_survives_a_save_and_a_load():
    """An optimizer loaded from another's state takes the very same next step."""
    check_state_survives(build, then=-3.0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("weight_decay", -0.1),
        ("weight_decay", math.inf),
        ("weight_decay", math.nan),
        ("beta1", 1.0),
        ("beta1", -0.1),
        ("beta2", 1.0),
        ("eps", 0.0),
        ("eps", math.nan),
    ],
)
def test_impossible_settings_name_the_key(key, value):
    """A setting out of its range is refused when it is given, by name."""
    with pytest.raises(ValueError, match=key):
        AdamW(**{key: value})
