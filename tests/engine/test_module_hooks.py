"""Hooks that a model has when a run begins, and lacks or has besides when it goes on."""

import copy
import types

import pytest
import torch
from structlog.testing import capture_logs
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

import altcore
from altcore import BadInput
from altcore.engine.module_hooks import hook_identity
from altcore.runs import CODE, HOOKS

KEYS = {"warmup_steps": 0, "min_lr_ratio": 1.0, "checkpoint_interval": 1}


def data(split, step, micro):
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(step))


def loss(model, batch):
    return (model(batch) - 1).square().mean()


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1))


def halved(*arguments):
    return arguments[-1] / 2 if isinstance(arguments[-1], torch.Tensor) else None


def noted(weight):
    """Does nothing."""


def patched(module):
    module.forward = lambda x: x


WAYS = {
    "forward_hooks of 1=halved": lambda model: model[1].register_forward_hook(halved),
    "forward_pre_hooks of 1=halved": lambda model: model[1].register_forward_pre_hook(halved),
    "backward_hooks of 1=halved": lambda model: model[1].register_full_backward_hook(halved),
    "forward_hooks of the model=halved": lambda model: model.register_forward_hook(halved),
    "hooks of 0.weight=halved": lambda model: model[0].weight.register_hook(halved),
    "hooks of 0.bias=noted": lambda model: model[0].bias.register_post_accumulate_grad_hook(noted),
    r"forward of 2=patched.<locals>.<lambda>": lambda model: patched(model[2]),
}


@pytest.fixture
def train(start):
    def train(model, steps, **more):
        config = start.config(name="r", max_steps=steps, **KEYS)
        return altcore.train(config, model=model, data=data, loss=loss, **more)

    return train


@pytest.mark.parametrize("says", WAYS)
def test_a_run_is_refused_without_a_hook_that_it_had(train, says):
    model = build()
    WAYS[says](model)
    train(model, 2)
    with pytest.raises(BadInput, match=f"with .*{says}"):
        train(build(), 3, resume="r")
    again = build()
    WAYS[says](again)
    assert not train(again, 3, resume="r").summary["changes"]


def test_a_run_is_refused_with_a_hook_more_or_another_code(train):
    train(build(), 2)
    model = build()
    model[1].register_forward_hook(halved)
    with pytest.raises(BadInput, match=r"forward_hooks of 1=none .*forward_hooks of 1=halved"):
        train(model, 3, resume="r")
    train(model, 3, resume="r", allow_change=["model"])
    other = build()
    other[1].register_forward_hook(with_code(halved, lambda *arguments: None))
    with pytest.raises(BadInput, match=r"with code .* with code"):
        train(other, 4, resume="r")


def with_code(function, other):
    made = types.FunctionType(other.__code__, globals())
    made.__qualname__ = function.__qualname__
    return made


def test_a_loop_is_told_of_hooks_that_it_has_not_any_more(tmp_path):
    def manager(model):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        return altcore.CheckpointManager(tmp_path, model, optimizer)

    model = build()
    model[1].register_forward_hook(halved)
    with manager(model) as own:
        own.save(1)
    with capture_logs() as logs, manager(model) as own:
        own.restore()
    assert not logs
    with capture_logs() as logs, manager(build()) as own:
        own.restore()
    assert [log["hooks"] for log in logs] == ["forward_hooks of 1 were halved, and are none"]


def test_a_loop_is_told_of_hooks_that_its_optimizer_has_not_any_more(tmp_path):
    def manager(*, has_hook):
        optimizer = torch.optim.SGD((model := build()).parameters(), 0.1)
        torch.optim.lr_scheduler.StepLR(optimizer, 2)
        if has_hook:
            optimizer.register_step_pre_hook(noted)
        return altcore.CheckpointManager(tmp_path, model, optimizer)

    with manager(has_hook=True) as own:
        own.save(1)
    for has_hook in (True, False):
        with capture_logs() as logs, manager(has_hook=has_hook) as own:
            own.restore()
        told = [log["hooks"] for log in logs if "hooks" in log]
        assert told == ["optimizer_step_pre_hooks of it were noted, and are none"] * (not has_hook)


def test_what_torch_and_altcore_put_on_a_model_is_no_hook_of_its_own():
    model = build()
    own = hook_identity(model)
    assert own[HOOKS] == own[CODE] == {}
    parametrizations.spectral_norm(model[0])
    with pytest.warns(FutureWarning):
        weight_norm(model[2])
    assert hook_identity(model) == own
    with altcore.quantize_model(build(), "pure", format="E4M3") as q:
        assert hook_identity(q.model) == own
    model.compile(backend="eager")
    assert hook_identity(model) == own


def test_a_function_in_the_place_of_a_method_is_seen_in_a_quantized_model():
    model = build()
    patched(model[2])
    own = hook_identity(copy.copy(model))
    with altcore.quantize_model(model, "pure", format="E4M3"):
        assert hook_identity(model) == own
    assert own[HOOKS]


def test_a_record_without_hooks_differs_from_none(train, monkeypatch):
    """As that of an earlier altcore."""
    monkeypatch.setattr("altcore.engine.given_parts.hook_identity", lambda *_: {})
    train(build(), 2)
    monkeypatch.undo()
    model = build()
    model[1].register_forward_hook(halved)
    assert not train(model, 3, resume="r").summary["changes"]
