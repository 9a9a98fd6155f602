"""Batches go to the run's device, unless whoever made them has put some of it there."""

from collections import namedtuple

import torch
from torch.utils._pytree import tree_leaves

from altcore.engine.checked_workload import placed

META = torch.device("meta")
"""A device that every machine has."""
Pair = namedtuple("Pair", "x y")


def devices(batch):
    return {t.device.type for t in tree_leaves(batch) if isinstance(t, torch.Tensor)}


def test_a_batch_on_the_cpu_is_moved_at_every_depth():
    x = torch.ones(2)
    moved = placed({"a": Pair(x, [x, (x, "text")]), "n": 3}, META)
    assert devices(moved) == {"meta"}
    assert isinstance(moved["a"], Pair)
    assert (moved["a"].y[1][1], moved["n"]) == ("text", 3)


def test_a_batch_that_is_partly_there_is_left_as_it_is():
    """Lengths, which torch wants on the CPU, say."""
    batch = {"x": torch.ones(2, device="meta"), "lengths": torch.ones(2)}
    assert placed(batch, META) is batch


def test_on_a_cpu_the_batch_is_the_own_one():
    batch = [torch.ones(2), None]
    assert placed(batch, torch.device("cpu")) is batch
