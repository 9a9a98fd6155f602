"""What ranks compare, as one of them sees it."""

from time import sleep

import pytest
import torch
import torch.distributed as dist
from structlog.testing import capture_logs
from torch import nn

from altcore.engine import buffer_forms, torchrun
from altcore.engine.lost_ranks import is_of_messages, lost_rank
from altcore.engine.torchrun import TorchrunRanks
from altcore.errors import AltcoreError, LostRank
from altcore.hook_clock import HookClock


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


def test_what_does_not_answer_is_not_called_gone():
    """And an error that another rank told of has one hint."""
    hint = "; --resume goes on from the last checkpoint"
    late = "Timed out waiting 8ms for recv"
    told = str(lost_rank(RuntimeError(f"[x.cc:7] {late}. This is gloo")))
    assert told == f"another process of the run does not answer: {late}{hint}"
    closed = RuntimeError("Application timeout caused pair closure")
    assert is_of_messages(closed)
    assert "does not answer" in str(lost_rank(closed))
    told = str(lost_rank(RuntimeError(), [f"rank 1 failed: LostRank: {told}"]))
    assert told.count(hint) == 1


def test_buffers_change_together_or_the_rank_that_is_alone_is_named(monkeypatch):
    """By the store: nobody else has to look."""
    monkeypatch.setattr(buffer_forms, "PATIENCE", 0.2)
    buffers, store = dict(Model().named_buffers()), dist.HashStore()
    own = buffer_forms.BufferForms(buffer_forms.forms_of(buffers))
    own.check(buffers, store, 0, 2)
    store.set("buffers/1/1", "another")
    told = r"buffers of rank 0 changed, .*: mask \(float32 \[3\]\); they must"
    with pytest.raises(AltcoreError, match=told):
        own.check({**buffers, "mask": torch.ones(3)}, store, 0, 2)
    with pytest.raises(AltcoreError, match=r"changed, .*: mask \(float32 \[2\]\)"):
        own.check(buffers, store, 0, 2)


def test_who_waits_long_for_a_message_says_so():
    """As of a hook, with the stack."""
    ranks = object.__new__(TorchrunRanks)
    ranks.rank = 1
    with capture_logs() as logs, HookClock(0.05).watching(), ranks.message():
        sleep(0.3)
    assert logs[0]["event"] == "rank 1 has been in a message to the other ranks for 0.05 s"
