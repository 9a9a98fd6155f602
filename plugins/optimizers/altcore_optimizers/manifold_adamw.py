"""The optimizer ``manifold-adamw``: AdamW that measures steps by the width of the grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal

import attrs
import torch
from attrs.validators import gt
from torch import Tensor
from torch.nn import Parameter

from altcore.plugin import interval_width, setting
from altcore_optimizers.adam import AdamSettings, adam_step
from altcore_optimizers.groups import decay_groups

if TYPE_CHECKING:
    from altcore.plugin import WeightGrid

    GridOf = Callable[[Parameter], WeightGrid | None]


@attrs.define(eq=False)
class ManifoldAdamW(AdamSettings):
    """Settings of AdamW with the grid's stiffness in it.

    The stiffness S of a weight is the width of the interval of its grid that it is in, in units of
    the weight, scale included (see `altcore.stiffness`), and at most ``max_stiffness``. So a step
    in proportion to it moves weights of all sizes by the same number of grid steps.

    - ``mode: update`` (the default) multiplies Adam's step, without the weight decay, by S over
      its root mean square in the tensor: w <- w - lr · (S / rms(S) · m̂ / (√v̂ + eps) + decay · w).
      On fixed point S is the same everywhere and this is AdamW, to 1 ULP.
    - ``mode: gradient`` multiplies the gradient by S before the moments, as the original
      experiments did. There Adam's division by √v̂ takes out again what is constant in time: for a
      weight whose stiffness stays, only eps makes a difference.

    A parameter that is on no grid gets AdamW, bit for bit PyTorch's (neither fused nor foreach).
    With ``log_bit_position`` the state of each parameter on a grid holds ``bit_position``, 0-dim:
    the mean over its elements of floor(log2 S), as of its last step.
    """

    mode: Literal["update", "gradient"] = setting(
        "update", help="what the stiffness multiplies: Adam's step, or the gradient before it"
    )
    max_stiffness: float = setting(
        1e6, help="upper limit of the stiffness, in units of the weight", validator=gt(0)
    )
    log_bit_position: bool = setting(
        False, help="keep the mean exponent of each tensor's stiffness in the state"
    )

    def build(
        self, named_parameters: Iterable[tuple[str, Parameter]], grid_of: GridOf
    ) -> torch.optim.Optimizer:
        """Return the optimizer, in the groups of `decay_groups`."""
        groups = decay_groups(named_parameters, self, "manifold-adamw")
        defaults = {"lr": 0.0, "betas": (self.beta1, self.beta2), "eps": self.eps}
        return ManifoldAdamWOptimizer(groups, defaults, self, grid_of)


class ManifoldAdamWOptimizer(torch.optim.Optimizer):
    """AdamW with stiffness. State: ``step``, ``exp_avg``, ``exp_avg_sq``, ``bit_position``."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        defaults: dict[str, Any],
        settings: ManifoldAdamW,
        grid_of: GridOf,
    ) -> None:
        super().__init__(groups, defaults)
        self.settings, self.grid_of = settings, grid_of

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make one update; there is no closure."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._step(p, group)

    def _step(self, p: Parameter, group: dict[str, Any]) -> None:
        state, grid = self.state[p], self.grid_of(p)
        if grid is None:
            adam_step(p, p.grad, state, group)
            return
        width = interval_width(p, grid.format, grid.scale).clamp(max=self.settings.max_stiffness)
        if self.settings.mode == "gradient":
            adam_step(p, p.grad * width.to(p.dtype), state, group)
        else:
            adam_step(p, p.grad, state, group, over_rms(width).to(p.dtype))
        if self.settings.log_bit_position:
            state["bit_position"] = bit_position(width)


def over_rms(x: Tensor) -> Tensor:
    """Return ``x`` over its root mean square, which is taken in float64: 1 where ``x`` is even."""
    norm = torch.linalg.vector_norm(x, dtype=torch.float64)
    return x / (norm / math.sqrt(x.numel())).to(x.dtype)


def bit_position(width: Tensor) -> Tensor:
    """Return the mean of floor(log2 ``width``), from the bits, 0-dim."""
    return (torch.frexp(width).exponent - 1).float().mean()
