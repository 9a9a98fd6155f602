"""The intervention ``loss-scale``: lifts small gradients into a format's range."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs
from attrs import field
from attrs.validators import and_, ge, gt, lt

from altcore.plugin import SkipStep, hookimpl, setting
from altcore_interventions.nonfinite import GRADIENTS, is_lost_gradient

if TYPE_CHECKING:
    from altcore.plugin import Cast, NonFinite, Run, Step


@attrs.define(eq=False)
class LossScale:
    """Multiply the loss before the backward pass; the engine divides the gradients again.

    Dynamic loss scaling (Micikevicius et al., arXiv:1710.03740, section 3.2; the defaults are
    PyTorch's): the scale begins at ``initial``, is multiplied by ``growth`` after
    ``growth_interval`` steps in a row without overflow, up to ``largest``, and by ``backoff``
    at an overflow, down to 1. An overflow is a step with a finite loss and a gradient that is not
    finite, or a gradient's quantizer that met such a value, while the scale is above 1. That step
    is skipped, and counts towards no patience.

    It helps gradients in a format without a scale of its own (``scaling: none``) and unquantized
    ones under ``compute: bfloat16``. If the scale follows the tensor (any other scaling) it
    changes nothing: a power of two in the tensor is the same power of two in the scale. And if
    overflow saturates (the default) none is ever seen, so that the scale only grows. When the run
    starts, a warning names the gradient roles that this affects.
    """

    initial: float = setting(65536.0, help="scale at the start", validator=ge(1.0))
    growth: float = setting(2.0, help="factor of a growth", validator=gt(1.0))
    growth_interval: int = setting(
        2000,
        help="steps without overflow before the scale grows",
        validator=ge(1),
        counts_steps=True,
    )
    backoff: float = setting(0.5, help="factor after an overflow", validator=and_(gt(0.0), lt(1.0)))
    largest: float = setting(2.0**24, help="largest loss scale", validator=ge(1.0))
    name: str = field(init=False, default="loss-scale")
    scale: float = field(init=False)
    good: int = field(init=False, default=0)
    """Steps since the last change that did not overflow."""
    last_step: int = field(init=False, default=0)
    """The last step that began; 0 once it is known how it went."""

    def __attrs_post_init__(self) -> None:
        self.scale = min(self.initial, self.largest)

    @hookimpl
    def run_start(self, run: Run) -> None:
        """Say for which roles of the recipe this plugin does nothing, or cannot see overflow."""
        casts: dict[str, list[Cast]] = {}
        for own in run.quantization.plan.values():
            for operand, cast in own.items():
                role = operand.partition("@")[0]
                if cast is not None and role in GRADIENTS:
                    casts.setdefault(role, []).append(cast)
        scaled = [r for r, own in casts.items() if all(c.scaling.kind != "none" for c in own)]
        if scaled:
            run.emit(
                "warning",
                message=f"{self.name} has no effect on what is rounded as {' and '.join(scaled)}: "
                "its scale follows the tensor",
            )
        silent = [r for r in casts if r not in scaled and any(map(is_silent, casts[r]))]
        if silent:
            run.emit(
                "warning",
                message=f"{self.name}: what overflows as {' and '.join(silent)} saturates, so that "
                "it never lowers the scale: overflow inf or nan would",
            )

    @hookimpl
    def pre_backward(self, step: Step) -> None:
        """Set the scale, after a growth if one is due."""
        if step.micro > 0:
            return
        if self.last_step:
            self.good += 1
        self.last_step = step.index
        if self.good >= self.growth_interval:
            self.good = 0
            self.scale = min(self.scale * self.growth, self.largest)
        step.loss_scale = self.scale

    @hookimpl
    def on_nan(self, step: Step, where: NonFinite) -> SkipStep | None:
        """Lower the scale if it may have been too large, and skip the step."""
        # Whatever it was, this step was no good one.
        self.last_step, self.good = 0, 0
        if not is_lost_gradient(where) or self.scale <= 1:
            return None
        before, self.scale = self.scale, max(1.0, self.scale * self.backoff)
        return SkipStep(
            counts=False,
            reason=f"{where} at a loss scale of {before:g}, which is lowered to {self.scale:g}",
        )

    def state_dict(self) -> dict[str, Any]:
        """Return scale and counts, as plain data."""
        return {"scale": self.scale, "good": self.good, "last_step": self.last_step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.scale, self.good = state["scale"], state["good"]
        self.last_step = state["last_step"]


def is_silent(cast: Cast) -> bool:
    """Whether a value that is too large becomes the largest one, and nobody sees it."""
    return cast.scaling.kind == "none" and cast.overflow == "saturate"
