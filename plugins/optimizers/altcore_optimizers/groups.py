"""Parameter groups and weight decay, as optimizers here have them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Protocol

import attrs
from attrs.validators import and_, ge, lt
from torch.nn import Parameter

from altcore.plugin import BadInput, setting


def decay_1d_setting() -> Any:
    """Return the setting that lets tensors of fewer than two dimensions decay, too."""
    return setting(False, help="whether tensors of one dimension (biases, norms) decay, too")


@attrs.define(eq=False)
class DecaySettings:
    """The settings of decoupled weight decay."""

    weight_decay: float = setting(
        0.1,
        help="decay of tensors with two or more dimensions, per unit of learning rate",
        validator=and_(ge(0), lt(math.inf)),
    )
    decay_1d: bool = decay_1d_setting()


class Decays(Protocol):
    """Settings of an optimizer with weight decay."""

    weight_decay: float
    decay_1d: bool


def decay_groups(
    named_parameters: Iterable[tuple[str, Parameter]],
    settings: Decays,
    who: str,
) -> list[dict[str, Any]]:
    """Return the parameters that require a gradient, in two groups; one without any is left out.

    Tensors of two or more dimensions decay; the rest (biases, norms) does if ``decay_1d`` says so.
    A parameter met under several names is taken once. Raises BadInput, naming ``who``, if there is
    none.
    """
    parameters = list({id(p): p for _, p in named_parameters if p.requires_grad}.values())
    if not parameters:
        raise BadInput(f"{who}: the model has no parameter that requires a gradient")
    decay = settings.weight_decay
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": decay},
        {
            "params": [p for p in parameters if p.ndim < 2],
            "weight_decay": decay * settings.decay_1d,
        },
    ]
    return [group for group in groups if group["params"]]


FUSED_DEVICES = frozenset({"cpu", "cuda"})


def can_fuse(groups: Iterable[dict[str, Any]]) -> bool:
    """Whether PyTorch has fused kernels for all of them; elsewhere it refuses to fall back."""
    parameters = [p for group in groups for p in group["params"]]
    return all(p.device.type in FUSED_DEVICES and p.is_floating_point() for p in parameters)
