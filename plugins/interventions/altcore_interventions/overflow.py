"""Whose fault a step that is not finite is: the loss scale's, or somebody else's."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from altcore.plugin import NonFinite, Step

GRADIENTS = ("gradient", "weight_gradient")
"""The roles that a loss scale reaches."""


def is_lost_gradient(where: NonFinite) -> bool:
    """Whether a gradient was lost on its way back, while the loss was finite."""
    if where.what == "quantizer":
        return (where.operand or "").startswith(GRADIENTS)
    return where.what == "gradient"


def is_loss_scales(where: NonFinite, step: Step) -> bool:
    """Whether it may be the doing of a loss scale above 1, which is then to be lowered first."""
    return is_lost_gradient(where) and float(step.loss_scale) > 1
