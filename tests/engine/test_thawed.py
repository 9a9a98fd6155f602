"""Parameters that are frozen when the run is built, and trained later."""

import pytest
import torch
from attrs import define
from helpers import events, state
from torch import nn

import altcore
from altcore import hookimpl
from altcore.engine.gradients import GradientNorms


@define(eq=False)
class Thaws:
    """Scales the loss, and thaws a layer after two steps."""

    @hookimpl
    def pre_backward(self, step):
        step.loss_scale = 1024.0

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
    names = [shelf.install("intervention", "thaws", Thaws)]

    def train(*more, **keys):
        keys = {"name": "r", "max_steps": 6, "grad_clip": 0.01, "checkpoint_interval": 1, **keys}
        return altcore.train(
            start.config([*names, *more], **keys), model=model(), data=data, loss=loss
        )

    return train


def test_its_gradients_are_scaled_and_measured_if_the_optimizer_has_it():
    """An optimizer may take parameters that are frozen when it is built."""
    made = model()
    norms = GradientNorms(made, 1e-8, [*made.parameters()])
    made[0].requires_grad_(True)
    loss(made, data("train", 1, 0)).backward()
    whole = torch.cat([p.grad.flatten() for p in made.parameters()]).norm()
    assert norms.measure() == pytest.approx(float(whole))
    norms.multiply(0.5)
    assert made[0].weight.grad.norm() > 0
    assert norms.norm() == pytest.approx(float(whole) / 2)
    assert norms.dead_by_name() == {"1.weight": 0, "1.bias": 0}


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


@define(eq=False)
class Freezes:
    """Freezes a layer between the backward pass and the clipping."""

    @hookimpl
    def pre_step(self, run, step):
        if step.index == 2:
            run.model[1].requires_grad_(False)


def test_one_that_is_frozen_after_its_gradient_was_made_is_clipped(start, shelf):
    """The optimizer has the gradient, and applies it."""
    names = [shelf.install("intervention", "freezes", Freezes)]
    keys = {"name": "r", "max_steps": 2, "grad_clip": 1e-4, "checkpoint_interval": 1}
    keys |= {"optimizer": "sgd", "sgd.momentum": 0.0, "learning_rate": 1.0, "schedule": "constant"}
    run = altcore.train(start.config(names, **keys), model=model(), data=data, loss=loss)
    before, after = (
        state(run.run_directory, f"step-0000000{n}")["model"]["1.weight"] for n in (1, 2)
    )
    assert (after - before).norm() < 1e-3


def test_one_that_no_optimizer_has_is_not_in_the_norm(trained):
    """Nobody clears its gradient, which adds up: it would clip those of the others."""
    with_it = trained(optimizer="sgd", max_steps=8)
    norms = [x["grad_norm"] for x in with_it.metrics_history]
    model_norms = trained(optimizer="adamw", name="other", max_steps=8).metrics_history
    assert norms[:2] == pytest.approx([x["grad_norm"] for x in model_norms[:2]], rel=0.1)
    assert norms[-1] <= norms[1] * 1.5
