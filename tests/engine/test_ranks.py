"""Several processes, as torchrun starts them, train one run."""

import json
import re

import pytest
import torch
from helpers import Starter, sha256, state
from helpers_distributed import by_torchrun
from torch import nn

import altcore
from altcore.engine import prepare
from altcore.engine.sending import as_bytes
from altcore.errors import BadInput, PluginError
from altcore.runs import read_lines

DELAYED = {"activation": {"format": "FORMAT", "scaling": "delayed"}}
BATCHES = {"eval_steps": 3, "eval_interval": 2, "max_steps": 4, "gpt__batch_size": 8}
SAME = [
    # Bit for bit would be luck: the ranks' halves of a sum are added in another order.
    {"format": "none", "name": "float32"},
    {"format": "E4M3", "name": "shared", "shared_amax": True},
    {
        "format": "E4M3",
        "name": "accumulated",
        "shared_amax": True,
        "gradient_accumulation_steps": 2,
    },
    {
        "format": "E4M3",
        "name": "delayed",
        "shared_amax": True,
        "recipe": DELAYED,
    },
]


class Normed(nn.Module):
    """A model with running statistics, and a layer that only every other pass uses."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.norm = nn.Embedding(256, 8), nn.BatchNorm1d(8)
        self.branch, self.head = nn.Linear(8, 8), nn.Linear(8, 256)
        self.passes = 0

    def forward(self, ids):
        x = self.embed(ids)
        self.passes += 1
        x = self.norm(x.flatten(0, 1)).view_as(x)
        return self.head(self.branch(x) if self.passes % 2 else x)


def alike(rank, runs, corpus):
    start = Starter(runs, corpus)
    for keys in (*SAME, {"name": "histories", "format": "E4M3", "recipe": DELAYED}):
        engine = start.engine(**keys, **BATCHES)
        assert (engine.run.rank, engine.run.world_size) == (rank, 2)
        summary = engine.train()
        environment = json.loads((engine.run.directory / "environment.json").read_text())
        assert summary["run_id"] == environment["run_id"]
        saved = state(engine.run.directory)
        assert sha256(engine.run.model.state_dict()) == sha256(saved["model"])
        assert len(saved["ranks"]) == 2
        # Delayed scales are those of all ranks by default, too.
        histories = engine.run.quantization.state_dict()["histories"]
        assert sha256(histories) == sha256(saved["quantization"]["histories"])
    model = Normed(seed=rank)
    before = sha256(model.state_dict())
    engine = prepare(start.config(name="normed", max_steps=3), model=model)
    assert (sha256(model.state_dict()) == before) == (rank == 0), "rank 0's weights are sent"
    engine.train()
    assert sha256(model.state_dict()) == sha256(state(engine.run.directory)["model"])
    assert model.norm.running_mean.count_nonzero()


@pytest.mark.slow
def test_two_ranks_train_as_one_process_does(tmp_path, corpus, start):
    """With half of each micro-batch; both end with the weights of rank 0's checkpoint."""
    by_torchrun(alike, tmp_path / "two", corpus)
    for keys in SAME:
        one, two = start(**keys, **BATCHES).run_directory, tmp_path / "two" / keys["name"]
        lines = [read_lines(run / "metrics.jsonl") for run in (one, two)]
        for own, other in zip(*lines, strict=True):
            assert own.keys() == other.keys()
            # Sums are made in another order. Some values of the format are then the next ones.
            near = 1e-5 if own["step"] == 1 or keys["format"] == "none" else 1e-3
            for key in {"loss", "grad_norm", "val_loss"} & {*own}:
                assert own[key] == pytest.approx(other[key], rel=near), (keys, key)


def in_own_order(rank, runs, corpus):
    """Measures whose order is each rank's own, one of them a count."""

    def loss(model, ids):
        told = {"ones": torch.ones(()), "hundred": torch.tensor(100)}
        told |= {name: torch.tensor(i + rank) for i, name in enumerate(MANY)}
        value = model(ids).square().mean()
        return value, dict(reversed(told.items())) if rank else told

    def data(split, step, micro):
        return torch.arange(16).view(4, 4)

    start = Starter(runs, corpus)
    keys = {"name": "r", "max_steps": 2, "gradient_accumulation_steps": 2, "eval_steps": 3}
    altcore.train(start.config(**keys), model=Normed(seed=0), loss=loss, data=data)


@pytest.mark.slow
def test_measures_are_averaged_by_their_names(tmp_path, corpus):
    by_torchrun(in_own_order, tmp_path / "two", corpus)
    lines = read_lines(tmp_path / "two" / "r" / "metrics.jsonl")
    *steps, evaluation = lines
    assert [(x["ones"], x["hundred"]) for x in steps] == [(1, 100)] * 2
    assert all(x[name] == i + 0.5 for x in steps for i, name in enumerate(MANY))
    assert (evaluation["val_ones"], evaluation["val_hundred"]) == (1, 100)


MANY = [f"m{i:03}" for i in range(130)]
"""More than one message has places for, and more than two."""
NAMES = {
    "renamed": (["one"], ["other"]),
    "more": (["one"], ["one", "other"]),
    "none": ([], ["other"]),
    "many": (MANY[:60], MANY),
}
TOLD = {
    "many": "60 (the other lacks none) on rank 0, 130 (the other lacks m060, m061, m062, m063, "
    "m064, m065, m066, m067, ... (70 in all)) on rank 1"
}


def with_own_measures(rank, runs, corpus):
    """Measures whose names are each rank's own, in the third step or in an evaluation only."""
    start = Starter(runs, corpus)

    def data(split, step, micro):
        return torch.full((4, 4), step)

    for what, names in NAMES.items():
        told = TOLD.get(what, f"{names[0]} on rank 0, {names[1]} on rank 1")
        error = rf"measures on the ranks: {re.escape(told)};"
        for is_training in (True, False):

            def loss(model, batch, own=names[rank], is_training=is_training):
                is_now = batch[0, 0] == 3 or not is_training
                told = own if is_now and torch.is_grad_enabled() == is_training else ()
                return model(batch).square().mean(), dict.fromkeys(told, torch.ones(()))

            keys = {"name": f"{what}-{is_training}", "max_steps": 4, "eval_steps": 2}
            with pytest.raises(PluginError, match=error):
                altcore.train(start.config(**keys), model=Normed(seed=0), loss=loss, data=data)
            lines = read_lines(runs / keys["name"] / "metrics.jsonl")
            assert not any({"one", "other", "val_one", "val_other"} & {*line} for line in lines)


@pytest.mark.slow
def test_measures_of_other_names_are_refused_by_name(tmp_path, corpus):
    """Before a mean is made of two things; also if one rank has more of them."""
    by_torchrun(with_own_measures, tmp_path / "two", corpus)


class Odd(nn.Module):
    """A model that holds what gloo or DDP cannot send."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        drawn = torch.rand(2, 3)
        self.frozen = nn.Parameter(drawn.to(torch.float8_e4m3fn), requires_grad=False)
        self.register_buffer("float8", drawn.to(torch.float8_e5m2))
        self.register_buffer("expanded", torch.rand(1, 3, 1).expand(4, 3, 2))
        self.register_buffer("unsigned", drawn.mul(100).to(torch.uint16))
        self.register_buffer("turned", torch.view_as_complex(torch.rand(3, 2)).conj())
        self.register_buffer("strided", torch.rand(6, 6)[::2, 1::3])
        self.register_buffer("scalar", torch.rand(()))

    def forward(self, x):
        if self.training:
            self.float8 = torch.rand(2, 3).to(torch.float8_e5m2)
        return self.linear(x.float())


def with_odd_tensors(rank, runs, corpus):
    start = Starter(runs, corpus)
    keys = {"data": lambda *_: torch.arange(16).view(4, 4), "loss": lambda m, x: m(x).mean()}
    torch.manual_seed(rank)
    model = Odd()
    altcore.train(start.config(name="odd", max_steps=3), model=model, **keys)
    saved = state(runs / "odd")["model"]
    assert saved.keys() == model.state_dict().keys()
    for name, x in model.state_dict().items():
        assert torch.equal(as_bytes(name, x), as_bytes(name, saved[name])), name
    sparse = Odd()
    sparse.adjacency = nn.Buffer(torch.eye(2).to_sparse())
    with pytest.raises(BadInput, match=r"model: adjacency is sparse_coo, which several processes"):
        altcore.train(start.config(name="sparse"), model=sparse, **keys)
    assert not (runs / "sparse").exists()


@pytest.mark.slow
def test_tensors_of_any_type_are_sent_as_they_are(tmp_path, corpus):
    """Frozen parameters, too; a sparse one is refused by its name."""
    by_torchrun(with_odd_tensors, tmp_path / "two", corpus)
