"""Steps that are not finite: whose fault they are, and how many there are in a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from altcore.plugin import NonFinite, Run, Step

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


@attrs.define(eq=False)
class Streak:
    """Consecutive non-finite steps."""

    count: int = 0
    last_step: int = 0
    """The last step that was counted."""

    def add(self, step: Step) -> int:
        """Count a step; returns how many there are in a row."""
        self.count = self.count + 1 if step.index == self.last_step + 1 else 1
        self.last_step = step.index
        return self.count


def warn_if_never_reached(run: Run, plugin: str, nan_patience: int) -> None:
    """Warn of a plugin's patience if that of the run, for steps that count, ends it before."""
    own = run.config.nan_patience
    if nan_patience > own:
        run.emit(
            "warning",
            message=f"{plugin}: nan_patience {nan_patience} is never reached unless steps are "
            f"skipped uncounted: the run collapses after {own} non-finite ones that count",
        )
