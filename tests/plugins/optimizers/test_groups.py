"""Weight decay, as every optimizer has it."""

import pytest
import torch
from torch import nn

from altcore_optimizers.adamw import AdamW
from altcore_optimizers.grid import Grid
from altcore_optimizers.lion import Lion
from altcore_optimizers.manifold_adamw import ManifoldAdamW
from altcore_optimizers.sgd import Sgd


@pytest.mark.parametrize("settings", [AdamW, Grid, Lion, ManifoldAdamW, Sgd])
def test_vectors_decay_if_the_setting_says_so(settings):
    """In every optimizer; by default they do not."""
    named = {"matrix": nn.Parameter(torch.ones(2, 3)), "bias": nn.Parameter(torch.ones(3))}
    for decay_1d in (False, True):
        made = settings(weight_decay=0.25, **({"decay_1d": True} if decay_1d else {}))
        optimizer = made.build(named.items(), lambda p: None)
        before = {name: p.detach().clone() for name, p in named.items()}
        for group in optimizer.param_groups:
            group["lr"] = 0.5
        for p in named.values():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        moved = {name: not torch.equal(p, before[name]) for name, p in named.items()}
        assert moved == {"matrix": True, "bias": decay_1d}
