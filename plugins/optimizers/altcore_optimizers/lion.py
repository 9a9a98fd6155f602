"""The optimizer ``lion``: the sign of a momentum."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import attrs
import torch
from attrs.validators import and_, ge, lt
from torch.nn import Parameter

from altcore.plugin import setting
from altcore_optimizers.groups import DecaySettings, decay_groups


@attrs.define(eq=False)
class Lion(DecaySettings):
    """Settings of Lion (Chen et al. 2023, arXiv:2302.06675, algorithm 2).

    c = beta1 · m + (1 - beta1) · g; w <- w - lr · (sign(c) + weight_decay · w);
    m <- beta2 · m + (1 - beta2) · g. Each element moves by lr, whatever its gradient, so that a
    learning rate 3 to 10 times below AdamW's is usual, and a weight decay as much above it.
    Tensors of two or more dimensions decay, the others with ``decay_1d``. The learning
    rate is the engine's.
    """

    beta1: float = setting(
        0.9, help="share of the momentum in the update's sign", validator=and_(ge(0), lt(1))
    )
    beta2: float = setting(0.99, help="decay rate of the momentum", validator=and_(ge(0), lt(1)))

    def build(
        self,
        named_parameters: Iterable[tuple[str, Parameter]],
        grid_of: Callable[[Parameter], Any],
    ) -> torch.optim.Optimizer:
        """Return the optimizer, in the groups of `decay_groups`; ``grid_of`` is not used."""
        groups = decay_groups(named_parameters, self, "lion")
        return LionOptimizer(groups, {"lr": 0.0, "betas": (self.beta1, self.beta2)})


class LionOptimizer(torch.optim.Optimizer):
    """Lion. State of each parameter: ``exp_avg``, the momentum."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make one update; there is no closure."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["exp_avg"] = torch.zeros_like(p)
                momentum = state["exp_avg"]
                p.mul_(1 - group["lr"] * group["weight_decay"])
                direction = momentum.lerp(p.grad, 1 - beta1).sign_()
                p.add_(direction, alpha=-group["lr"])
                momentum.lerp_(p.grad, 1 - beta2)
