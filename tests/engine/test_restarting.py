"""What a plugin does in `run_start` is done once, however often the run goes on."""

import pytest
import torch
from attrs import define
from helpers import weights_sha256
from torch import nn

import altcore
from altcore import hookimpl, setting
from altcore.errors import AltcoreError

KEYS = {"learning_rate": 0.1, "warmup_steps": 0, "min_lr_ratio": 1.0, "checkpoint_interval": 2}


class Scaled(nn.Module):
    """Two layers, with a buffer that no state has."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(3, 16), nn.Linear(16, 1)
        self.register_buffer("factor", torch.ones(16), persistent=False)

    def forward(self, x):
        return self.two(self.one(x).relu() * self.factor)


def scale_weights(run):
    with torch.no_grad():
        for p in run.model.parameters():
            p.mul_(0.5)


def scale_buffer(run):
    run.model.factor.mul_(0.5)


def decay(run):
    for group in run.optimizer.param_groups:
        group["weight_decay"] = group["weight_decay"] * 10 + 0.1


def freeze(run):
    run.model.one.requires_grad_(False)


def add_buffer(run):
    run.model.register_buffer("count", torch.zeros(()))


def add_group(run):
    run.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})


@define(eq=False)
class Starts:
    """Does something as the run starts; thaws what is frozen, and counts what counts."""

    how: str = setting("", help="the function that does it")

    @hookimpl
    def run_start(self, run):
        globals().get(self.how, lambda run: None)(run)

    @hookimpl
    def post_step(self, run, step):
        if step.index == 1:
            run.model.requires_grad_(True)
        if hasattr(run.model, "count"):
            run.model.count += 1


def data(split, step, micro):
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(step))


def loss(model, batch):
    return (model(batch) - 1).square().mean()


@pytest.fixture
def train(start, shelf):
    shelf.install("intervention", "starts", Starts)

    def train(name, steps, how, **more):
        keys = {"name": name, "max_steps": steps, "starts__how": how, **KEYS}
        config = start.config(["starts"], **keys)
        altcore.train(config, model=Scaled(), data=data, loss=loss, **more)
        return weights_sha256(start.runs / name)

    return train


@pytest.mark.parametrize("how", ["scale_weights", "scale_buffer", "decay", "freeze", "add_buffer"])
def test_it_is_not_done_to_what_the_checkpoint_has(how, train):
    whole = train("whole", 6, how)
    train("part", 2, how)
    train("part", 4, how, resume="part")
    assert train("part", 6, how, resume="part") == whole


def test_a_buffer_of_a_plugin_that_came_since_stays(train):
    """The plugin has to be able to go on with it."""
    train("part", 2, "")
    train("part", 4, "add_buffer", resume="part", allow_change=["configuration"])


def test_a_group_that_came_since_is_named(train):
    train("part", 2, "")
    with pytest.raises(AltcoreError, match="the optimizer has 3 groups, and was built with 2"):
        train("part", 4, "add_group", resume="part", allow_change=["configuration"])
