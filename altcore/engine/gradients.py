"""The norms of a model's gradients: one pass serves clipping, recording and the detector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import is_

import torch
from attrs import define, field
from torch import Tensor, nn

from altcore.errors import AltcoreError
from altcore.numerics import norms_of


@define(eq=False)
class GradientNorms:
    """Measures and scales all gradients of a model, on the device."""

    model: nn.Module
    dead_threshold: float
    """A gradient is dead when its root mean square is below this."""
    updated: Sequence[Tensor] = ()
    """What the optimizer updates: a parameter among it that is frozen may be trained later."""
    names: list[str] = field(init=False)
    parameters: list[nn.Parameter] = field(init=False)
    """Those that are trained as the run is built, whose dead gradients are counted."""
    every: list[nn.Parameter] = field(init=False)
    """Those, and what the optimizer updates besides."""
    dead_norms: Tensor = field(init=False)
    """For each parameter the L2 norm below which its gradient is dead."""
    dead_steps: Tensor = field(init=False)
    """int64, for each parameter: consecutive steps in which its gradient was dead."""

    def __attrs_post_init__(self) -> None:
        trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.names, self.parameters = list(trained), list(trained.values())
        own = {id(p) for p in (*self.parameters, *self.updated)}
        self.every = [p for p in self.model.parameters() if id(p) in own]
        if not trained:
            raise AltcoreError("the model has no parameter to train")
        device = self.parameters[0].device
        norms = [self.dead_threshold * math.sqrt(p.numel()) for p in self.parameters]
        self.dead_norms = torch.tensor(norms, dtype=torch.float32, device=device)
        self.dead_steps = torch.zeros(len(norms), dtype=torch.int64, device=device)

    def present(self) -> list[Tensor]:
        """Return all gradients that exist; `AltcoreError` if there is none."""
        return [p.grad for p in self._reached() if p.grad is not None]

    def _reached(self) -> list[nn.Parameter]:
        # One that was frozen since the backward pass is updated all the same.
        found = [p for p in self.every if p.grad is not None]
        if not found:
            raise AltcoreError(
                "no trained parameter has a gradient: the loss depends on none of them, or an "
                "intervention took the gradients away"
            )
        if sparse := [p for p in found if p.grad is not None and p.grad.layout != torch.strided]:
            name = next(n for n, p in self.model.named_parameters() if p is sparse[0])
            raise AltcoreError(
                f"the gradient of {name} is sparse, and altcore trains on dense ones: build the "
                "model with dense gradients, as nn.Embedding(..., sparse=False) has"
            )
        return found

    def multiply(self, factor: Tensor | float) -> None:
        """Multiply all gradients in place."""
        torch._foreach_mul_(self.present(), factor)

    def norm(self) -> Tensor:
        """Return the L2 norm of all gradients, 0-dim."""
        return torch.linalg.vector_norm(norms_of(self.present()))

    def measure(self) -> Tensor:
        """Return the L2 norm of all gradients, 0-dim, and count the dead ones."""
        reached = self._reached()
        norms = norms_of([p.grad for p in reached if p.grad is not None])
        # A parameter without any gradient counts as dead: nothing reaches it.
        if len(reached) == len(self.parameters) and all(map(is_, reached, self.parameters)):
            all_norms = norms
        else:
            counted, places = {id(p) for p in self.parameters}, {id(p) for p in reached}
            has = torch.tensor([id(p) in places for p in self.parameters], device=norms.device)
            own = torch.tensor([id(p) in counted for p in reached], device=norms.device)
            all_norms = norms.new_zeros(len(has)).masked_scatter(has, norms[own])
        is_dead = all_norms < self.dead_norms
        self.dead_steps = (self.dead_steps + 1) * is_dead
        return torch.linalg.vector_norm(norms)

    def dead_by_name(self) -> dict[str, int]:
        """Return the counts of `dead_steps` by parameter; a host read."""
        return dict(zip(self.names, self.dead_steps.tolist(), strict=True))
