"""A loop of one's own whose ranks train together: what a checkpoint has of one of them."""

import random

import pytest
import torch
from structlog.testing import capture_logs
from torch import nn

import altcore

DELAYED = {"activation": {"format": "FORMAT", "scaling": "delayed"}}


@pytest.fixture
def as_rank(monkeypatch):
    """Make this process a rank of several, as `torch.distributed` tells it."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)

    def become(rank):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)

    return become


def loop(recipe):
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    q = recipe and altcore.quantize_model(model, recipe, format="E4M3", optimizer=optimizer)
    return model, optimizer, q


def train(model):
    """Make the gradients of a step, which add up, and draw a few numbers."""
    model(torch.rand(2, 4)).sum().backward()


def drawn():
    return torch.rand(4).tolist(), random.random()


@pytest.mark.parametrize(
    ("recipe", "taken"),
    [(None, "gradients, also.average"), (DELAYED, "delayed scales, gradients, also.average")],
    ids=["plain", "delayed"],
)
def test_no_rank_goes_on_with_the_random_numbers_of_another(recipe, taken, as_rank, tmp_path):
    """It has its own, the same at each restore, and is told what else it takes of the other."""
    as_rank(0)
    own = loop(recipe)
    train(own[0])
    also = {"average": nn.Linear(4, 4)}
    altcore.save_checkpoint(tmp_path, *own, 3, also=also)
    goes_on = drawn()

    def restored(rank):
        as_rank(rank)
        with capture_logs() as logs:
            altcore.load_checkpoint(tmp_path, *loop(recipe), also=also)
        return drawn(), [line["event"] for line in logs]

    assert restored(0) == (goes_on, [])
    first, second, again = restored(1), restored(2), restored(1)
    assert first == again
    for one, two in ((goes_on, first[0]), (goes_on, second[0]), (first[0], second[0])):
        assert all(a != b for a, b in zip(one, two, strict=True))
    (told,) = first[1]
    assert told.startswith("rank 0 saved, and the random states of rank 1 are in no checkpoint")
    assert told.endswith(f"as rank 0 had them it takes {taken}")


def test_a_rank_goes_on_with_what_it_saved_itself(as_rank, tmp_path):
    """In a folder of its own, bit for bit and without a word."""
    as_rank(1)
    altcore.save_checkpoint(tmp_path, *loop(None), 3)
    goes_on = drawn()
    with capture_logs() as logs:
        altcore.load_checkpoint(tmp_path, *loop(None))
    assert (drawn(), logs) == (goes_on, [])
