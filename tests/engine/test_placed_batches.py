"""Batches go to the run's device, unless whoever made them has put some of it there."""

from collections import UserDict, namedtuple

import pytest
import torch
from torch.utils._pytree import tree_leaves

from altcore.engine.checked_workload import placed
from altcore.errors import PluginError

META = torch.device("meta")
"""A device that every machine has."""
Pair = namedtuple("Pair", "x y")


def devices(batch):
    return {t.device.type for t in tree_leaves(batch) if isinstance(t, torch.Tensor)}


def test_a_batch_on_the_cpu_is_moved_at_every_depth():
    x = torch.ones(2)
    moved = placed({"a": Pair(x, [x, (x, "text")]), "n": 3}, META, "here")
    assert devices(moved) == {"meta"}
    assert isinstance(moved["a"], Pair)
    assert (moved["a"].y[1][1], moved["n"]) == ("text", 3)


def test_a_batch_that_is_partly_there_is_left_as_it_is():
    """Lengths, which torch wants on the CPU, say."""
    batch = {"x": torch.ones(2, device="meta"), "lengths": torch.ones(2)}
    assert placed(batch, META, "here") is batch


def test_on_a_cpu_the_batch_is_the_own_one():
    batch = [torch.ones(2), None]
    assert placed(batch, torch.device("cpu"), "here") is batch


class Encoding(UserDict):
    """As a tokenizer's: torch does not know that it holds tensors."""

    def to(self, device):
        return Encoding({name: t.to(device) for name, t in self.items()})


class Graph:
    """Nothing says what is in it."""

    def __init__(self, edges):
        self.edges = edges

    def to(self, device):
        return Graph(self.edges.to(device))


@pytest.mark.parametrize("form", [lambda x: Encoding(ids=x), Graph], ids=["mapping", "opaque"])
def test_a_container_of_its_own_moves_itself(form):
    batch, target = placed((form(torch.ones(2)), torch.ones(2)), META, "here")
    parts = [getattr(batch, "edges", None) if isinstance(batch, Graph) else batch["ids"], target]
    assert devices(parts) == {"meta"}


def test_a_container_that_cannot_move_is_named():
    """It would fail in the loss, with torch's words on an operation."""
    with pytest.raises(PluginError, match=r"here: a UserDict with tensors on the CPU cannot be m"):
        placed([UserDict(ids=torch.ones(2))], META, "here")


def test_a_class_in_a_batch_stays():
    """It has a ``to`` that belongs to its objects."""
    assert placed([torch.ones(2), Encoding], META, "here")[1] is Encoding
