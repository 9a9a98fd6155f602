"""The detector: whether training still learns, judged from host numbers alone.

Stall alone is never collapse. It counts only after warm-up, at a learning rate of at least half
its peak, over a window in which the training loss has not improved by two standard errors.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from statistics import fmean, variance
from typing import Any

from attrs import define, field

from altcore.config import TrainConfig

SMOOTH = 20
"""Steps over which the loss is averaged to say that it has diverged."""
FIRST = 5
"""Steps that are not averaged: a spike among the first may pass."""


@define(eq=False)
class Detector:
    """Watches a run, step by step; each cause is reported once until it clears."""

    config: TrainConfig
    nonfinite: int = 0
    """Consecutive non-finite steps."""
    active: set[str] = field(factory=set)
    first_loss: float | None = None
    seen: int = 0
    """Finite losses."""
    losses: deque[float] = field(init=False)
    window: deque[tuple[float, float]] = field(init=False)
    """(loss, stall rate) of the recorded steps that may be judged."""

    def __attrs_post_init__(self) -> None:
        self.losses = deque(maxlen=SMOOTH)
        self.window = deque(maxlen=self.config.stall_window)

    def observe(
        self,
        step: int,
        loss: float,
        *,
        is_finite: bool,
        is_forgiven: bool = False,
        counts: bool = True,
        learning_rate: float,
        stall: tuple[str, float] | None = None,
        dead: Mapping[str, int] | None = None,
    ) -> list[dict[str, Any]]:
        """Take in a step; return the evidence of each cause that is new.

        ``is_forgiven``: the format was shifted or the state rolled back because of this step, so
        that it is not counted as non-finite. ``counts``: a non-finite step that does not count
        leaves the number of consecutive ones as it is.
        ``stall`` is (``stored`` or ``view``, rate) of the last recorded update, ``dead`` the
        number of consecutive steps that each layer's gradient has been dead.
        """
        found: dict[str, dict[str, Any] | None] = {
            "nan_patience": self._nan(is_finite or is_forgiven, counts),
            "dead_gradients": self._dead(dead or {}),
        }
        if is_finite:
            found["diverged"] = self._diverged(loss)
            if stall is not None and self._may_judge(step, learning_rate):
                self.window.append((loss, stall[1]))
                found["stalled"] = self._stalled(stall[0])
        new = []
        for cause, evidence in found.items():
            if evidence is None:
                self.active.discard(cause)
            elif cause not in self.active:
                self.active.add(cause)
                new.append({"cause": cause, **evidence})
        return new

    def start_anew(self) -> None:
        """Forget what was seen of another recipe or state: it was changed, or rolled back."""
        self.nonfinite = 0
        self.window.clear()
        self.active -= {"nan_patience", "stalled"}

    def _nan(self, is_finite: bool, counts: bool) -> dict[str, Any] | None:
        self.nonfinite = 0 if is_finite else self.nonfinite + counts
        patience = self.config.nan_patience
        if self.nonfinite < patience:
            return None
        return {
            "reason": f"{self.nonfinite} consecutive steps were not finite "
            f"(nan_patience {patience})",
            "consecutive": self.nonfinite,
        }

    def _dead(self, dead: Mapping[str, int]) -> dict[str, Any] | None:
        window = self.config.dead_neuron_window
        layers = sorted(name for name, steps in dead.items() if steps >= window)
        if not layers:
            return None
        return {
            "reason": f"the gradient of {', '.join(layers[:4])}"
            f"{' and others' if len(layers) > 4 else ''} was below "
            f"{self.config.dead_neuron_threshold:g} (root mean square) for {window} steps",
            "dead_layers": layers,
        }

    def _diverged(self, loss: float) -> dict[str, Any] | None:
        self.losses.append(loss)
        self.seen += 1
        start = self.first_loss = loss if self.first_loss is None else self.first_loss
        now = fmean(self.losses)
        if self.seen <= FIRST + SMOOTH or now <= start + (self.config.diverged_ratio - 1) * abs(
            start
        ):
            return None
        return {
            "reason": f"the loss of the last {SMOOTH} steps, {now:.4g}, is more than "
            f"{self.config.diverged_ratio:g} times the {start:.4g} that it started at",
            "loss_at_start": start,
            "loss_now": now,
        }

    def _may_judge(self, step: int, learning_rate: float) -> bool:
        at_least = 0.5 * self.config.learning_rate
        return step > self.config.warmup_steps and learning_rate >= at_least

    def _stalled(self, which: str) -> dict[str, Any] | None:
        if len(self.window) < self.config.stall_window:
            return None
        losses = [loss for loss, _ in self.window]
        rate = fmean(s for _, s in self.window)
        half = len(losses) // 2
        before, after = losses[:half], losses[half:]
        improvement = fmean(before) - fmean(after)
        error = math.sqrt(variance(before) / len(before) + variance(after) / len(after))
        if rate <= self.config.bit_stall_threshold or improvement >= 2 * error:
            return None
        return {
            "reason": f"{rate:.1%} of {which} weight updates stalled over {len(losses)} recorded "
            f"steps (threshold {self.config.bit_stall_threshold:.0%}), while the loss improved by "
            f"{improvement:.3g}, less than two standard errors ({2 * error:.3g})",
            "stall_of": which,
            "rate": rate,
            "improvement": improvement,
            "standard_error": error,
            "window": len(losses),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        return {
            "nonfinite": self.nonfinite,
            "active": sorted(self.active),
            "first_loss": self.first_loss,
            "seen": self.seen,
            "losses": list(self.losses),
            "window": [list(pair) for pair in self.window],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.nonfinite = state["nonfinite"]
        self.active = set(state["active"])
        self.first_loss, self.seen = state["first_loss"], state["seen"]
        self.losses.extend(state["losses"])
        self.window.extend((loss, stall) for loss, stall in state["window"])
