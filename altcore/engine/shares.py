"""A rank's share of a micro-batch: the same number of its items as every other rank's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from torch import Tensor

from altcore.errors import BadInput


def share_of(batch: Any, rank: int, world_size: int) -> Any:
    """Return the items of ``rank`` out of a micro-batch, in the structure of the micro-batch.

    Args:
        batch: tensors, also in tuples, lists, mappings and attrs classes, whose first dimension is
            that of the items. Numbers, texts and tensors without dimensions are for all.
        rank: from 0.
        world_size: how many ranks there are.

    Raises:
        BadInput: if the ranks cannot have equal shares, or something else is in the micro-batch.

    >>> import torch
    >>> share_of((torch.arange(6), "texts"), 1, 2)
    (tensor([3, 4, 5]), 'texts')
    """

    def part(value: Any) -> Any:
        return share_of(value, rank, world_size)

    match batch:
        case Tensor() if batch.dim() == 0:
            return batch
        case Tensor():
            if len(batch) % world_size:
                raise BadInput(
                    f"a micro-batch has {len(batch)} items, of which {world_size} processes "
                    "cannot have equal shares",
                    key="batch_size",
                )
            size = len(batch) // world_size
            return batch[rank * size : (rank + 1) * size]
        case tuple() if hasattr(batch, "_fields"):
            return type(batch)(*map(part, batch))
        case tuple() | list():
            return type(batch)(map(part, batch))
        case Mapping():
            return {key: part(value) for key, value in batch.items()}
        case None | bool() | int() | float() | str():
            return batch
    if attrs.has(type(batch)):
        return attrs.evolve(
            batch, **{k: part(v) for k, v in attrs.asdict(batch, recurse=False).items()}
        )
    raise BadInput(
        f"a micro-batch holds {type(batch).__name__}, which cannot be shared between processes: "
        "give the workload a method shard(batch, rank, world_size)"
    )
