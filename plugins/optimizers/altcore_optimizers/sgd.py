"""The optimizer ``sgd``: PyTorch's SGD, with weight decay on matrices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import attrs
import torch
from attrs.validators import and_, ge, lt
from torch.nn import Parameter

from altcore.plugin import BadInput, setting
from altcore_optimizers.groups import can_fuse, decay_1d_setting, decay_groups


@attrs.define(eq=False)
class Sgd:
    """Settings of stochastic gradient descent: b <- momentum · b + g; w <- w - lr · b.

    The first b is g itself. With ``nesterov``, w <- w - lr · (g + momentum · b) (Sutskever et al.
    2013, as PyTorch has it). Weight decay adds weight_decay · w to the gradient g, of tensors with
    two or more dimensions and, with ``decay_1d``, of the others. The learning rate is the engine's.
    """

    momentum: float = setting(
        0.9, help="share of the last step that is kept", validator=and_(ge(0), lt(1))
    )
    nesterov: bool = setting(False, help="look ahead by the momentum")
    weight_decay: float = setting(
        0.0,
        help="added to the gradient of tensors with two or more dimensions, times the weight",
        validator=and_(ge(0), lt(math.inf)),
    )
    decay_1d: bool = decay_1d_setting()

    def __attrs_post_init__(self) -> None:
        if self.nesterov and self.momentum == 0:
            raise BadInput(
                "there is no momentum to look ahead by (momentum is 0)", key="sgd.nesterov"
            )

    def build(
        self,
        named_parameters: Iterable[tuple[str, Parameter]],
        grid_of: Callable[[Parameter], Any],
    ) -> torch.optim.Optimizer:
        """Return ``torch.optim.SGD``, in the groups of `decay_groups`; ``grid_of`` is not used."""
        groups = decay_groups(named_parameters, self, "sgd")
        # PyTorch's fused kernel for CPUs leaves most 16-bit parameters as they are (2.12 and 2.13).
        is_narrow = any(
            p.is_cpu and p.element_size() < 4 for group in groups for p in group["params"]
        )
        return torch.optim.SGD(
            groups,
            lr=0.0,
            momentum=self.momentum,
            nesterov=self.nesterov,
            fused=can_fuse(groups) and not is_narrow,
        )
