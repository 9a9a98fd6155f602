"""Whether the updated weights, and the model's buffers, are finite."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from attrs import define, evolve, field
from torch import Tensor, nn

from altcore.engine.buffers import Buffers
from altcore.engine.finite import first_nonfinite
from altcore.errors import AltcoreError
from altcore.hooks import NonFinite
from altcore.numerics import norms_of
from altcore.recipes import some


@define(eq=False)
class WeightCheck:
    """Finds weights and buffers that became NaN or infinite, and says which step made them so.

    The norm is one pass over them, on the device. It travels with the next step's one host read,
    so that it is known before that step's optimizer. A buffer or a frozen weight that is not finite
    when the run is built may stay so: an attention mask may be infinite. So may a buffer that takes
    another shape later.
    """

    model: nn.Module
    buffers: Buffers = field(init=False)
    every: list[Tensor] = field(init=False)
    """All parameters: one that is frozen may be trained later."""
    as_built: set[int] = field(init=False)
    """Which of them were trained when the run was built, or frozen and finite."""
    trained: dict[str, Tensor] = field(init=False)
    """The trained parameters by name, as the optimizer has them."""
    watched: dict[str, tuple[Any, ...]] = field(init=False)
    """The buffers that were finite when the run was built, with their shape and type."""
    since: int | None = field(init=False, default=None)
    """The step that made them what they are; None while they are finite."""
    at_start: Tensor | None = field(init=False, default=None)
    """What `norm` returned as the step began; None if nobody could change weights since."""

    def __attrs_post_init__(self) -> None:
        self.buffers = Buffers(self.model)
        self.trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.every = list(self.model.parameters())
        device = next(iter(self.trained.values())).device
        self.as_built = {
            id(p)
            for p in self.every
            if p.requires_grad or (p.device == device and _is_statistic(p))
        }
        self.watched = {
            name: _form(b)
            for name, b in self.buffers.now().items()
            if b is not None and b.device == device and _is_statistic(b)
        }

    def norm(self) -> Tensor:
        """Return the L2 norm of all watched parameters and buffers, 0-dim."""
        with torch.no_grad():
            watched = [p for p in self.every if self._is_watched(p)]
            return torch.linalg.vector_norm(norms_of([*watched, *(b for _, b in self._buffers())]))

    def _is_watched(self, p: Tensor) -> bool:
        return p.requires_grad or id(p) in self.as_built  # also while one of those is frozen

    def begin_step(self, *, compares: bool) -> None:
        """Note what the weights are if somebody may change them before the step's host read."""
        self.at_start = self.norm() if compares else None

    def judge(
        self, norm: float, step: int, *, is_running: bool = False, at_start: float | None = None
    ) -> NonFinite | None:
        """Return the first weight or buffer that is not finite, None if all are.

        ``norm`` is what `norm` returned after ``step``; if the next step ``is_running``, its
        forward pass may have changed the buffers, and an intervention the weights, whose norm
        was ``at_start`` before. Only if it is not finite is there more to read: large weights may
        have such a norm, too.
        """
        found = None if math.isfinite(norm) else self._first()
        if found is None:
            self.since = None
            return None
        if is_running and found.what == "buffer" and self.buffers.was_finite(found.layer):
            return found
        if at_start is not None and math.isfinite(at_start):
            self.since = step + 1
            return found
        self.since = step if self.since is None else self.since
        return evolve(found, arose=self.since)

    def names(self) -> list[str]:
        """Return the names of the watched parameters and buffers."""
        return [name for name, _ in (*self._parameters(), *self._buffers())]

    def check_in_place(self) -> None:
        """Raise `AltcoreError` if a trained parameter is no longer the one that is updated."""
        now = dict(self.model.named_parameters())
        gone = [name for name, p in self.trained.items() if now.get(name) is not p]
        if gone:
            raise AltcoreError(
                f"{some(gone)}: something put another parameter in the place of the one that the "
                "optimizer updates, or took it away, and it is trained no more"
            )

    def thawed(self, optimizer: torch.optim.Optimizer) -> list[str]:
        """Return the names of parameters that were frozen, are no more, and no optimizer has."""
        named = self.model.named_parameters()
        late = [(n, p) for n, p in named if p.requires_grad and n not in self.trained]
        own = {id(p) for group in optimizer.param_groups for p in group["params"]} if late else ()
        return [name for name, p in late if id(p) not in own]

    def _parameters(self) -> Iterator[tuple[str, Tensor]]:
        named = self.model.named_parameters()
        return ((name, p.detach()) for name, p in named if self._is_watched(p))

    def _buffers(self) -> Iterator[tuple[str, Tensor]]:
        now = self.buffers.now() if self.watched else {}
        for name, form in self.watched.items():
            buffer = now.get(name)
            if buffer is not None and _form(buffer) == form:
                yield name, buffer.detach()

    def _first(self) -> NonFinite | None:
        for what, named in (("weights", self._parameters()), ("buffer", self._buffers())):
            for name, tensor in named:
                if (bad := first_nonfinite(tensor)) is not None:
                    return NonFinite(what, name, value=bad)
        return None


def _form(buffer: Tensor) -> tuple[Any, ...]:
    return buffer.shape, buffer.dtype, buffer.device


def _is_statistic(buffer: Tensor) -> bool:
    """Whether it is finite, and of a type that has a norm, which 8 bits are too few for."""
    is_float = buffer.is_floating_point() and buffer.dtype.itemsize > 1
    return is_float and buffer.layout == torch.strided and bool(torch.isfinite(buffer).all())
