"""A rank's share of a micro-batch: the same number of its items as every other rank's.

Each rank takes its share of what it drew itself, so a checksum says whether all drew the same.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from altcore.errors import AltcoreError, BadInput


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

    def part(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dim() == 0:
            return leaf
        if len(leaf) % world_size:
            raise BadInput(
                f"a micro-batch has {len(leaf)} items, of which {world_size} processes "
                "cannot have equal shares",
                key="batch_size",
            )
        size = len(leaf) // world_size
        return leaf[rank * size : (rank + 1) * size]

    return _mapped(batch, part)


PRIME = 2**31 - 1
"""Of the checksums: what is below it is exact in float64, in which the ranks' message is."""


@attrs.define
class Drawn:
    """What a rank keeps of a micro-batch, to compare it with the others'."""

    shapes: list[str] = attrs.field(factory=list)
    """Of each tensor its type and shape, of anything else itself."""
    checksum: Tensor | int = 0
    """Of bits, shapes and types, below `PRIME`: on the device, if a tensor there was drawn."""

    @classmethod
    def of(cls, batch: Any) -> Drawn:
        """Describe a micro-batch that `share_of` accepts; nothing is read from the device."""
        drawn = cls()

        def add(leaf: Any) -> Any:
            own: Tensor | int = 0
            text = repr(leaf)
            if isinstance(leaf, Tensor):
                text = f"{str(leaf.dtype).removeprefix('torch.')} {list(leaf.shape)}"
                own = _checksum(leaf)
            own = own + zlib.crc32(text.encode())
            drawn.shapes.append(text)
            drawn.checksum = (31 * drawn.checksum + own) % PRIME
            return leaf

        _mapped(batch, add)
        return drawn

    def __str__(self) -> str:
        return f"{', '.join(self.shapes)} (checksum {int(self.checksum)})"


def check_drawn(drawn: Sequence[Sequence[str]]) -> None:
    """Raise `AltcoreError` unless all ranks drew the same micro-batches, which are told by rank."""
    for rank, other in enumerate(drawn):
        for one, two in zip(drawn[0], other, strict=True):
            if one != two:
                raise AltcoreError(
                    f"the ranks drew different micro-batches: {one} on rank 0, {two} on rank "
                    f"{rank}; each rank must draw the whole batch that one process would"
                )


def _checksum(x: Tensor) -> Tensor:
    """Return the sum of the elements' bits, each times an odd number of its place."""
    x = x.detach().contiguous().flatten()
    bits = x.view(INTEGERS[min(x.element_size(), 8)]).long() % PRIME
    return (bits * torch.arange(1, 2 * len(bits), 2, device=x.device)).sum()


INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By their size in bytes."""


def _mapped(batch: Any, leaf: Callable[[Any], Any]) -> Any:
    """Return a micro-batch with ``leaf`` of each tensor, number and text in it."""

    def part(value: Any) -> Any:
        return _mapped(value, leaf)

    match batch:
        case Tensor() | None | bool() | int() | float() | str():
            return leaf(batch)
        case tuple() if hasattr(batch, "_fields"):
            return type(batch)(*map(part, batch))
        case tuple() | list():
            return type(batch)(map(part, batch))
        case Mapping():
            return {key: part(value) for key, value in batch.items()}
    if attrs.has(type(batch)):
        return attrs.evolve(
            batch, **{k: part(v) for k, v in attrs.asdict(batch, recurse=False).items()}
        )
    raise BadInput(
        f"a micro-batch holds {type(batch).__name__}, which cannot be shared between processes: "
        "give the workload a method shard(batch, rank, world_size)"
    )
