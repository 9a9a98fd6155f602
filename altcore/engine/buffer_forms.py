"""Whether the buffers of all ranks come, go and change their shapes together, as a cache's may."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

import torch
import torch.distributed as dist
from attrs import define, field
from torch import Tensor
from torch.distributed.distributed_c10d import Store

from altcore.errors import AltcoreError
from altcore.recipes import some

Form = tuple[torch.dtype, torch.Size]

PATIENCE = 120.0
"""Seconds that a rank whose buffers changed waits for those of the others to do so."""


@define(eq=False)
class BufferForms:
    """The types and shapes of buffers that all ranks have."""

    known: dict[str, Form]
    changes: int = field(init=False, default=0)

    def check(self, own: Mapping[str, Tensor], store: Store, rank: int, world_size: int) -> None:
        """Raise `AltcoreError` if the buffers of this rank changed, and not those of all.

        The rank would send a message for which no other waits. So it tells the others by a store,
        where those whose buffers are as before need not look.
        """
        before, now = self.known, forms_of(own)
        if now == before:
            return
        self.known, self.changes = now, self.changes + 1
        keys = [f"buffers/{self.changes}/{rank}" for rank in range(world_size)]
        store.set(keys[rank], repr(sorted(now.items())))
        try:
            store.wait(keys, timedelta(seconds=PATIENCE))
            is_same = len({store.get(key) for key in keys}) == 1
        except dist.DistStoreError:
            is_same = False
        if not is_same:
            names = sorted(n for n in {*now, *before} if now.get(n) != before.get(n))
            forms = [f"{name} ({_told(*now[name]) if name in now else 'gone'})" for name in names]
            raise AltcoreError(
                f"buffers of rank {rank} changed, and not in the same way on each rank: "
                f"{some(forms)}; they must come, go and change their shapes together"
            )


def forms_of(buffers: Mapping[str, Tensor]) -> dict[str, Form]:
    """Return type and shape of each buffer, by name."""
    return {name: (x.dtype, x.shape) for name, x in buffers.items()}


def _told(dtype: torch.dtype, shape: torch.Size) -> str:
    return f"{str(dtype).removeprefix('torch.')} {[*shape]}"
