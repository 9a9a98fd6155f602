"""The optimizer ``adamw``: PyTorch's AdamW, with weight decay on matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import attrs
import torch
from torch.nn import Parameter

from altcore_optimizers.adam import AdamSettings
from altcore_optimizers.groups import can_fuse, decay_groups


@attrs.define(eq=False)
class AdamW(AdamSettings):
    """Settings of AdamW (Loshchilov and Hutter, arXiv:1711.05101).

    The learning rate is the engine's: it follows the schedule and the actions.
    """

    def build(
        self,
        named_parameters: Iterable[tuple[str, Parameter]],
        grid_of: Callable[[Parameter], Any],
    ) -> torch.optim.Optimizer:
        """Return ``torch.optim.AdamW`` over the parameters that require a gradient.

        There are two groups: tensors of two or more dimensions, which decay, and the rest (biases,
        norms), which do with ``decay_1d`` only; a group with no parameter is left out. A parameter
        met under several names is taken once. Every group starts with ``lr`` 0.0, which the engine
        sets each step. ``grid_of`` is not used. Raises BadInput if no parameter requires a
        gradient.
        """
        groups = decay_groups(named_parameters, self, "adamw")
        return torch.optim.AdamW(
            groups,
            lr=0.0,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            fused=can_fuse(groups),
        )
