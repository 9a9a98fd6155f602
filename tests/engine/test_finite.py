"""Finding what is not finite, in every type and layout."""

import math

import pytest
import torch
from helpers import events
from torch import nn

import altcore
from altcore.engine.finite import first_nonfinite


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (torch.tensor([1.0, -math.inf]), -math.inf),
        (torch.tensor([1.0, 2.0]), None),
        (torch.tensor([1 + 2j, complex(1, math.inf)]), math.inf),
        (torch.tensor([1 + 2j]), None),
        (torch.tensor([0.0, math.inf]).to_sparse(), math.inf),
        (torch.tensor([1.0, math.nan]).to(torch.float8_e5m2), math.nan),
    ],
)
def test_the_first_element_that_is_not_finite(given, found):
    assert first_nonfinite(given) == (found if found is None else pytest.approx(found, nan_ok=True))


class Rotates(nn.Module):
    """Has a complex parameter."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(4, 4)
        self.turn = nn.Parameter(torch.ones(4, dtype=torch.complex64))

    def forward(self, x):
        return (self.line(x) * self.turn).abs().mean()


def rows(split, step, micro):
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(step))


def test_a_complex_gradient_that_is_not_finite_discards_its_step(start):
    def loss(model, batch):
        value = model(batch)
        if model.training and value.requires_grad and torch.equal(batch.cpu(), rows("train", 1, 0)):
            model.turn.register_hook(lambda g: g * math.nan)
        return value

    config = start.config(["skip-nonfinite"], name="r", max_steps=3, format="none")
    run = altcore.train(config, model=Rotates(), data=rows, loss=loss)
    found = events(run.run_directory, "nan")
    assert {(e["what"], e["layer"]) for e in found} == {("gradient", "turn")}
