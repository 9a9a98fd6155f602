"""What ranks compare, as one of them sees it."""

import pytest
import torch
from torch import nn

from altcore.engine.torchrun import TorchrunRanks
from altcore.errors import AltcoreError


class Model(nn.Module):
    """A model with a weight, and a buffer that checkpoints leave out."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(2, 2), nn.BatchNorm1d(2)
        self.register_buffer("mask", torch.ones(2), persistent=False)


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("linear.weight", "weight linear.weight"),
        ("norm.running_var", "buffer norm.running_var"),
        ("mask", "buffer mask"),
    ],
)
def test_what_differs_between_the_replicas_is_named(key, told, monkeypatch):
    """A buffer is called one."""
    ranks, model = object.__new__(TorchrunRanks), Model()
    ranks.rank = 1
    sent = []
    monkeypatch.setattr(TorchrunRanks, "gather", lambda _, own: sent.append(own) or sent)
    ranks.check_replicas(model)
    model.get_buffer(key).add_(1) if "weight" not in key else nn.init.ones_(model.linear.weight)
    with pytest.raises(AltcoreError, match=f"replicas differ: {told} is not the same on rank 1"):
        ranks.check_replicas(model)
