"""The intervention ``rollback``: goes back to a state from before training broke."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
from attrs import field
from attrs.validators import and_, ge, gt, le

from altcore.plugin import (
    BadInput,
    Format,
    Rollback,
    ScaleLearningRate,
    ShiftFormat,
    hookimpl,
    setting,
)
from altcore_interventions.nonfinite import Streak, is_loss_scales, warn_if_never_reached

if TYPE_CHECKING:
    from altcore.plugin import NonFinite, Run, Step


@attrs.define(eq=False)
class RollbackOnFailure:
    """Restore a snapshot at least ``steps`` old, and go on with the next batches.

    After ``nan_patience`` consecutive non-finite steps, and on a collapse called ``diverged`` if
    ``on_diverged``. Batches are not replayed, so that what broke training may be behind it
    (Chowdhery et al., arXiv:2204.02311, section 5.1, restarted so after spikes of the loss);
    ``format`` or ``learning_rate_factor`` also change something, once restored, at every attempt.

    There are at most ``most_attempts`` rollbacks in a run; then the plugin has no opinion, and the
    engine's own rules stop the run. The count is the plugin's state, which no rollback rolls
    back. Nothing is proposed either if no snapshot is both finite and old enough, of which
    the run is told.

    A gradient that is lost while the loss is finite and the loss scale above 1 is the loss scale's
    business, and not counted.
    """

    needs: ClassVar[tuple[str, ...]] = ("snapshots",)
    steps: int = setting(
        10, help="age of the snapshot in steps, at least", validator=ge(1), counts_steps=True
    )
    nan_patience: int = setting(
        3, help="consecutive non-finite steps before a rollback", validator=ge(1)
    )
    on_diverged: bool = setting(True, help="whether a collapse called diverged is a case for it")
    most_attempts: int = setting(3, help="rollbacks in a run, at most", validator=ge(1))
    format: Format | None = setting(
        None, help="shift everything quantized to this format after the restore"
    )
    learning_rate_factor: float = setting(
        1.0,
        help="multiply the learning rate by this after the restore",
        validator=and_(gt(0.0), le(1.0)),
    )
    name: str = field(init=False, default="rollback")
    attempts: int = field(init=False, default=0)
    nonfinite: Streak = field(init=False, factory=Streak)

    def __attrs_post_init__(self) -> None:
        if self.format is not None and self.learning_rate_factor != 1:
            raise BadInput("give a format or a learning_rate_factor, not both", key="rollback")

    @hookimpl
    def run_start(self, run: Run) -> None:
        """Warn of settings under which this plugin would never act."""
        config = run.config
        warn_if_never_reached(run, self.name, self.nan_patience)
        is_quantized = any(any(casts.values()) for casts in run.quantization.plan.values())
        if self.format is not None and not is_quantized and not self.attempts:
            message = f"{self.name}: format changes nothing: nothing is quantized"
            run.emit("warning", message=message)
        oldest = config.snapshot_interval * config.max_snapshots
        if self.steps > oldest:
            run.emit(
                "warning",
                message=f"{self.name}: no snapshot is ever {self.steps} steps old: "
                f"{config.max_snapshots} are kept, {config.snapshot_interval} steps apart",
            )

    @hookimpl
    def on_nan(self, run: Run, step: Step, where: NonFinite) -> Rollback | None:
        """Count consecutive non-finite steps; propose a rollback when there are enough."""
        if is_loss_scales(where, step):
            return None
        count = self.nonfinite.add(step)
        if count < self.nan_patience:
            return None
        return self._propose(run, f"{count} consecutive steps were not finite: {where}")

    @hookimpl
    def on_collapse(self, run: Run, evidence: Mapping[str, Any]) -> Rollback | None:
        """Propose a rollback when the loss has diverged."""
        if evidence["cause"] != "diverged" or not self.on_diverged:
            return None
        return self._propose(run, evidence["reason"])

    @hookimpl
    def on_event(self, event: Mapping[str, Any]) -> None:
        """Count the rollbacks that were carried out."""
        if event["event"] == "rollback" and event["plugin"] == self.name:
            self.attempts += 1
            self.nonfinite = Streak()

    def _propose(self, run: Run, cause: str) -> Rollback | None:
        if self.attempts >= self.most_attempts:
            return None
        # Rare, and the engine itself asks each snapshot then.
        if not any(s.step <= run.step - self.steps and s.is_finite() for s in run.snapshots):
            message = f"{self.name}: no finite snapshot is {self.steps} steps old"
            run.emit("warning", message=message)
            return None
        which = f"attempt {self.attempts + 1} of {self.most_attempts}"
        return Rollback(steps=self.steps, then=self._then(), reason=f"{cause}; {which}")

    def _then(self) -> Any:
        if self.format is not None:
            return ShiftFormat(self.format, reason=f"rolled back, on to {self.format.name}")
        factor = self.learning_rate_factor
        if factor != 1:
            reason = f"rolled back, on at {factor:g} times the learning rate"
            return ScaleLearningRate(factor=factor, reason=reason)
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return the counts, as plain data."""
        return {"attempts": self.attempts, "nonfinite": attrs.asdict(self.nonfinite)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.attempts, self.nonfinite = state["attempts"], Streak(**state["nonfinite"])
