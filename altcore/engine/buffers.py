"""The buffers of a model, such as the running statistics of a batch norm."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from attrs import define, field
from torch import Tensor, nn

from altcore.engine.trespass import address


@define(eq=False)
class Buffers:
    """Finds the buffers of a model, and keeps them as they were before a step.

    A forward pass changes them, before it is known whether the step is discarded. The copies lie on
    the device and are written over by the next step's; a model without buffers costs nothing.
    """

    model: nn.Module
    owners: dict[str, dict[str, Tensor | None]] = field(init=False)
    """The buffers of each module, by the module's name."""
    places: dict[str, tuple[dict[str, Tensor | None], str]] = field(init=False)
    """Where each lies, by its name: the model may put another tensor there."""
    kept: dict[str, Tensor | None] = field(init=False, factory=dict)
    """The tensors that lay there before the step."""
    memory: dict[str, Tensor] = field(init=False, factory=dict)
    """Where each held it: ``buffer.data = other`` gives the same tensor other memory."""
    copies: dict[str, Tensor] = field(init=False, factory=dict)
    """What they held."""
    by_type: list[tuple[list[Tensor], list[Tensor]]] = field(init=False, factory=list)
    """Tensors and copies of one type: these are copied in one launch."""

    def __attrs_post_init__(self) -> None:
        self.owners = {prefix: module._buffers for prefix, module in self.model.named_modules()}
        self._find()

    def _find(self) -> None:
        self.places = {
            f"{prefix}.{key}" if prefix else key: (held, key)
            for prefix, held in self.owners.items()
            for key in tuple(held.keys())
        }

    def now(self) -> dict[str, Tensor | None]:
        """Return each buffer as it is; None for one that is not set."""
        # What a ScriptModule holds them in has no get.
        return {n: held[k] if k in held else None for n, (held, k) in self.places.items()}  # noqa: SIM401

    def keep(self) -> None:
        """Copy them all, on the device."""
        if sum(map(len, self.owners.values())) != len(self.places):
            self._find()  # one appeared, as a cache does in a forward pass
        if not self.places:
            return
        now = self.now()
        is_same = [*map(id, now.values())] == [*map(id, self.kept.values())]
        if not is_same or any(_has_moved(now[n], own) for n, own in self.memory.items()):
            self.kept = now
            free = {n: b for n, b in now.items() if b is not None and not is_expanded(b)}
            self.memory = {n: b.detach() for n, b in free.items()}
            self.copies = {n: torch.empty_like(b) for n, b in free.items()}
            self.by_type = _grouped(self.memory, self.copies)
        for tensors, copies in self.by_type:
            torch._foreach_copy_(copies, tensors)

    def was_finite(self, name: str | None) -> bool:
        """Whether one was finite before the step; a host read."""
        return name in self.copies and bool(torch.isfinite(self.copies[name]).all())

    def put_back(self) -> None:
        """Let them be as `keep` found them; those that appeared since go."""
        before = self.places
        self._find()
        for held, key in (self.places[name] for name in self.places.keys() - before):
            del held[key]
        self.places = before
        for name, tensor in self.kept.items():
            held, key = self.places[name]
            if key not in held or held[key] is not tensor:
                held[key] = tensor
            if tensor is not None and name in self.memory and _has_moved(tensor, self.memory[name]):
                tensor.data = self.memory[name]
        with torch.no_grad():
            for tensors, copies in self.by_type:
                torch._foreach_copy_(tensors, copies)


def is_expanded(buffer: Tensor) -> bool:
    """Whether elements of it share their memory: nobody can write to it in place."""
    strides = buffer.stride() if buffer.layout == torch.strided else ()
    return any(s == 0 and n > 1 for s, n in zip(strides, buffer.shape, strict=False))


def _has_moved(buffer: Tensor | None, memory: Tensor) -> bool:
    if buffer is None or buffer.layout != torch.strided:
        return False
    return address(buffer) != address(memory) or buffer.shape != memory.shape


def _grouped(
    tensors: Mapping[str, Tensor], copies: Mapping[str, Tensor]
) -> list[tuple[list[Tensor], list[Tensor]]]:
    groups: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for name, copy in copies.items():
        own, of_own = groups.setdefault(copy.dtype, ([], []))
        own.append(tensors[name])
        of_own.append(copy)
    return list(groups.values())
