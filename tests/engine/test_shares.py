"""A rank's share of a micro-batch."""

from collections import namedtuple

import pytest
import torch
from attrs import define

from altcore.engine.ranks import Ranks
from altcore.engine.shares import Drawn, share_of
from altcore.engine.torchrun import TorchrunRanks
from altcore.errors import BadInput

Pair = namedtuple("Pair", "x y")


@define
class Batch:
    images: torch.Tensor
    smoothing: float = 0.1


@pytest.mark.parametrize(
    "batch",
    [
        torch.arange(12).reshape(6, 2),
        (torch.arange(6), torch.arange(6) + 1),
        [torch.arange(6), None, True],
        {"ids": torch.arange(6), "name": "a text", "scale": torch.tensor(2.0)},
        Pair(torch.arange(6), 3),
        Batch(torch.arange(6)),
        {"nested": [(torch.arange(6),)]},
    ],
)
def test_the_shares_make_the_micro_batch(batch):
    """In the order of the ranks; what has no items is for all."""

    def leaves(value):
        if isinstance(value, Batch):
            value = [value.images, value.smoothing]
        if isinstance(value, dict):
            value = list(value.values())
        return [x for v in value for x in leaves(v)] if isinstance(value, list | tuple) else [value]

    shares = [share_of(batch, rank, 3) for rank in range(3)]
    assert {type(share) for share in shares} == {type(batch)}
    for whole, *parts in zip(leaves(batch), *map(leaves, shares), strict=True):
        if isinstance(whole, torch.Tensor) and whole.dim():
            assert torch.equal(torch.cat(parts), whole)
            assert {len(part) for part in parts} == {2}
        else:
            assert all(part is whole for part in parts)


def test_shares_that_cannot_be_equal_are_refused():
    with pytest.raises(BadInput, match="batch_size: a micro-batch has 6 items, of which 4 proc"):
        share_of([torch.arange(6)], 0, 4)


def test_what_has_no_first_dimension_is_refused():
    with pytest.raises(BadInput, match=r"holds set, .* a method shard\(batch, rank, world_size\)"):
        share_of((torch.arange(6), {1, 2}), 0, 2)


def test_a_workload_may_share_its_batches_itself():
    class Columns:
        def shard(self, batch, rank, world_size):
            return batch[:, rank::world_size]

    ranks = TorchrunRanks.__new__(TorchrunRanks)
    ranks.rank, ranks.world_size = 1, 2
    assert ranks.share(Columns(), torch.arange(8).reshape(2, 4)).tolist() == [[1, 3], [5, 7]]


def test_a_lone_process_gets_the_micro_batch_itself():
    batch = torch.arange(5)
    assert Ranks().share(object(), batch) is batch


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.arange(4), torch.arange(6)),
        (torch.arange(4), torch.tensor([0, 1, 3, 2])),
        (torch.arange(4), torch.arange(4).int()),
        (torch.ones(4, 2), torch.ones(2, 4)),
        (torch.ones(2).double(), torch.tensor([1.0, -1.0]).double()),
        (torch.ones(2).bfloat16(), torch.tensor([1.0, 2.0]).bfloat16()),
        (torch.ones(2, dtype=torch.complex128), torch.full((2,), 1j, dtype=torch.complex128)),
        (Batch(torch.arange(2)), Batch(torch.arange(2), 0.2)),
        ([torch.arange(2), torch.ones(2)], [torch.ones(2), torch.arange(2)]),
        (torch.tensor(True), torch.tensor(False)),
    ],
)
def test_what_differs_has_another_checksum(one, other):
    assert str(Drawn.of(one)) == str(Drawn.of(one))
    assert int(Drawn.of(one).checksum) != int(Drawn.of(other).checksum)


def test_a_checksum_is_of_values_and_not_of_their_place_in_memory():
    x = torch.arange(6).reshape(2, 3)
    assert str(Drawn.of(x.T)) == str(Drawn.of(x.T.contiguous())) != str(Drawn.of(x.T + 1))
    assert str(Drawn.of((torch.ones(4, 2), 3))).startswith("float32 [4, 2], 3 (checksum ")
