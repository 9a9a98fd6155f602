"""Parameters that are frozen when the run is built, and trained later."""

import pytest
import torch
from attrs import define
from helpers import events, state
from torch import nn

import altcore
from altcore import hookimpl

NORMS = []
"""Of the thawed gradient, as the optimizer gets it."""


@define(eq=False)
class Thaws:
    """Scales the loss, and thaws a layer after two steps."""

    @hookimpl
    def pre_backward(self, step):
        step.loss_scale = 1024.0

    @hookimpl
    def pre_step(self, run, step):
        gradient = run.model[0].weight.grad
        NORMS.append(0.0 if gradient is None else float(gradient.norm()))

    @hookimpl
    def post_step(self, run, step):
        if step.index == 2:
            run.model[0].requires_grad_(True)


@define(eq=False)
class Poisons:
    """Makes a thawed weight infinite."""

    @hookimpl
    def post_step(self, run, step):
        if step.index == 4:
            run.model[0].weight.data[0, 0] = torch.inf


def model():
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    made[0].requires_grad_(False)
    return made


def data(split, step, micro):
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(step))


def loss(model, batch):
    return (model(batch) - 1).square().mean()


@pytest.fixture
def trained(start, shelf):
    NORMS.clear()
    names = [shelf.install("intervention", "thaws", Thaws)]

    def train(*more, **keys):
        keys = {"name": "r", "max_steps": 6, "grad_clip": 0.01, "checkpoint_interval": 1, **keys}
        return altcore.train(
            start.config([*names, *more], **keys), model=model(), data=data, loss=loss
        )

    return train


def test_its_gradients_are_unscaled_and_clipped(trained):
    """By a norm that counts them."""
    run = trained()
    assert NORMS[:2] == [0, 0]
    assert all(0 < norm < 50 for norm in NORMS[2:])
    norms = [x["grad_norm"] for x in run.metrics_history]
    assert all(own < whole for own, whole in zip(NORMS, norms, strict=True))


def test_it_is_watched(start, shelf, trained):
    """An infinite one is found before the next step's loss is."""
    run = trained(shelf.install("intervention", "poisons", Poisons))
    (found,) = events(run.run_directory, "nan")[:1]
    assert (found["step"], found["what"], found["layer"]) == (4, "weights", "0.weight")


def test_one_that_no_optimizer_has_is_named(trained):
    run = trained(optimizer="sgd")
    told = [x["message"] for x in events(run.run_directory, "warning") if x["cause"] == "unsaved"]
    assert len(told) == 1
    assert told[0].startswith("0.weight, 0.bias: trained by no optimizer")
    saved = state(run.run_directory)["model"]["0.weight"]
    assert torch.equal(saved, model()[0].weight)
