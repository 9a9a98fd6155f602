"""Settings that optimizers like Adam share, and one step in PyTorch's own order."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from attrs.validators import and_, ge, gt, lt
from torch import Tensor

from altcore.plugin import setting
from altcore_optimizers.groups import DecaySettings


@attrs.define(eq=False)
class AdamSettings(DecaySettings):
    """Settings of Adam's moments."""

    beta1: float = setting(
        0.9, help="decay rate of the mean of the gradients", validator=and_(ge(0), lt(1))
    )
    beta2: float = setting(
        0.95, help="decay rate of the mean of their squares", validator=and_(ge(0), lt(1))
    )
    eps: float = setting(
        1e-8, help="added to the root of the second moment", validator=and_(gt(0), lt(math.inf))
    )


def adam_step(
    p: Tensor,
    gradient: Tensor,
    state: dict[str, Any],
    group: Mapping[str, Any],
    ratio: Tensor | None = None,
) -> None:
    """Update ``p`` and its ``state`` (``step``, ``exp_avg``, ``exp_avg_sq``) in place.

    Without ``ratio`` bit for bit what ``torch.optim.AdamW(foreach=False, fused=False)`` does; with
    it, the step without the weight decay is multiplied by it, element by element.
    """
    if "exp_avg" not in state:
        state |= {"step": 0, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
    state["step"] += 1
    lr, (beta1, beta2) = group["lr"], group["betas"]
    first, second = state["exp_avg"], state["exp_avg_sq"]
    if p.is_complex():  # two real numbers, each with moments of its own
        p, gradient, first, second = map(torch.view_as_real, (p, gradient, first, second))
    p.mul_(1 - lr * group["weight_decay"])
    first.lerp_(gradient, 1 - beta1)
    second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    rate = lr / (1 - beta1 ** state["step"])
    root = (1 - beta2 ** state["step"]) ** 0.5
    size = (second.sqrt() / root).add_(group["eps"])
    p.addcdiv_(first if ratio is None else first * ratio, size, value=-rate)
