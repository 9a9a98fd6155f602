"""What ranks compare, as one of them sees it."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from altcore.engine import torchrun
from altcore.engine.torchrun import TorchrunRanks
from altcore.errors import AltcoreError, LostRank


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


@pytest.mark.parametrize(("machines", "group"), [("1", "altcore/2/5/"), ("2", "altcore/0/5/")])
def test_processes_that_torchrun_starts_anew_do_not_meet_the_dead(machines, group, monkeypatch):
    """Whose addresses the store has. Agents of several machines count restarts, each its own."""
    given = {**dict.fromkeys(torchrun.TORCHRUN, "0"), "WORLD_SIZE": "2"}
    given |= {"TORCHELASTIC_RESTART_COUNT": "2", "GROUP_WORLD_SIZE": machines}
    monkeypatch.setattr(torchrun, "_NUMBERS", iter([5]))
    store = dist.HashStore()
    monkeypatch.setattr(torchrun, "rendezvous", lambda _: iter([(store, 0, 2)]))

    def meet(backend, store, rank, world_size, timeout):
        store.set("address", "here")
        raise RuntimeError("Gloo connectFullMesh failed with [gloo/pair.cc:152] timed out")

    monkeypatch.setattr(dist, "init_process_group", meet)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LostRank, match="another process of the run is gone: Gloo connectFullMesh"):
        TorchrunRanks("cpu")
    assert store.check([f"{group}address"])
