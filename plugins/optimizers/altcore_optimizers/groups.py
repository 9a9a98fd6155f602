"""Parameter groups and weight decay, as optimizers here have them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import attrs
from attrs.validators import and_, ge, lt
from torch.nn import Parameter

from altcore.plugin import BadInput, setting


@attrs.define(eq=False)
class DecaySettings:
    """The setting of decoupled weight decay."""

    weight_decay: float = setting(
        0.1,
        help="decay of tensors with two or more dimensions, per unit of learning rate",
        validator=and_(ge(0), lt(math.inf)),
    )


def decay_groups(
    named_parameters: Iterable[tuple[str, Parameter]], weight_decay: float, who: str
) -> list[dict[str, Any]]:
    """Return the parameters that require a gradient, in two groups; one without any is left out.

    Tensors of two or more dimensions decay, the rest (biases, norms) does not. A parameter met
    under several names is taken once. Raises BadInput, naming ``who``, if there is none.
    """
    parameters = list({id(p): p for _, p in named_parameters if p.requires_grad}.values())
    if not parameters:
        raise BadInput(f"{who}: the model has no parameter that requires a gradient")
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


FUSED_DEVICES = frozenset({"cpu", "cuda"})


def can_fuse(groups: Iterable[dict[str, Any]]) -> bool:
    """Whether PyTorch has fused kernels for all of them; elsewhere it refuses to fall back."""
    parameters = [p for group in groups for p in group["params"]]
    return all(p.device.type in FUSED_DEVICES and p.is_floating_point() for p in parameters)
