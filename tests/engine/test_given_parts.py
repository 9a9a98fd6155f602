"""What a model of one's own is known by, besides its modules."""

import pytest
import torch
from helpers import weights_sha256
from torch import nn

import altcore
from altcore import BadInput

KEYS = {"warmup_steps": 0, "min_lr_ratio": 1.0, "checkpoint_interval": 1}


class Scaled(nn.Module):
    """Has a buffer that no state has; it may change it as it trains, or make another one."""

    def __init__(self, factor=1.0, *, grows=False):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.grows = nn.Linear(3, 1), grows
        self.register_buffer("factor", torch.full((4,), factor), persistent=False)

    def forward(self, x):
        if self.grows and self.training:
            self.factor += 1
            self.register_buffer("cache", self.factor * 2, persistent=False)
        return self.one(x) * self.factor[0]


def data(split, step, micro):
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(step))


def loss(model, batch):
    return (model(batch) - 1).square().mean()


@pytest.fixture
def train(start):
    def train(name, steps, model, **more):
        config = start.config(name=name, max_steps=steps, **KEYS)
        done = altcore.train(config, model=model, data=data, loss=loss, **more)
        return done.summary, weights_sha256(start.runs / name)

    return train


def test_another_value_in_a_buffer_that_no_checkpoint_has_is_refused(train):
    train("r", 2, Scaled())
    says = r"model was Scaled, .*with factor=\[4\] \w+ and is .*with factor=\[4\] \w+: --allow"
    with pytest.raises(BadInput, match=says):
        train("r", 3, Scaled(3.0), resume="r")
    assert not train("r", 3, Scaled(), resume="r")[0]["changes"]
    summary, _ = train("r", 4, Scaled(3.0), resume="r", allow_change=["model"])
    assert [change["what"] for change in summary["changes"]] == ["model"]


def test_a_buffer_that_the_checkpoint_has_is_not_compared(train):
    """As that of a model that has trained before, which is passed again."""
    _, whole = train("whole", 3, Scaled(grows=True))
    model = Scaled(grows=True)
    train("r", 2, model)
    assert train("r", 3, model, resume="r")[1] == whole
