"""The detector: it judges from host numbers alone whether training still learns.

Stalled updates and dead gradients are a collapse only if the loss stands still: over a window, the
training loss has not improved by two standard errors, and validation (the value that `monitor`
names), if the run measures it, is no better than when the window began. Otherwise they are told
once, as a warning. Stall counts only after warm-up, at a learning rate of at least half its peak.
The stall of views of float32 masters delays updates and loses none, so it is never a cause.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, TypeAlias

from attrs import define, field, frozen

from altcore.builtin_types import digits
from altcore.config import TrainConfig, as_cost

SMOOTH = 20
"""Steps whose mean loss is compared with the first loss, to see whether it has diverged."""
FIRST = 5
"""Steps left out of that mean: a spike among the first may pass."""
FEWEST = 4
"""The fewest losses of a window, two in each half: fewer have no standard error."""
LEAST = 1e-4
"""Validation improves if its value does by this share of itself; a smaller change is rounding."""

Evaluation: TypeAlias = tuple[int, float]
"""A step, and the value of `monitor` in its evaluation."""


@frozen
class Trend:
    """How the loss moved over a window of steps."""

    improvement: float
    """Of the training loss: its mean over the first half minus that over the second."""
    error: float
    """Two standard errors of it."""
    validation: tuple[float | None, float | None] | None = None
    """The best value up to the window's beginning, and since; each None if there is none yet.
    None if they are not looked at: the run makes none, or a plugin judges without them."""
    monitor: str = "val_loss"
    """The name of that value."""
    mode: str = "min"
    """Whether the best is the lowest (min) or the highest (max)."""

    @classmethod
    def of(
        cls,
        losses: Sequence[tuple[int, float]],
        evaluations: Sequence[Evaluation] | None = None,
        monitor: str = "val_loss",
        mode: str = "min",
    ) -> Trend:
        """Return the trend of (step, loss) pairs, `FEWEST` or more.

        ``evaluations`` are those of the run so far, None to judge without them.
        """
        half = len(losses) // 2
        before, after = [x for _, x in losses[:half]], [x for _, x in losses[half:]]
        error = 2 * math.sqrt(_squared_error(before) + _squared_error(after))
        improvement = fmean(before) - fmean(after)
        if evaluations is None:
            return cls(improvement, error)
        known = [x for step, x in evaluations if step <= losses[0][0]]
        since = [x for step, x in evaluations if step > losses[0][0]]
        if not known:
            # The first evaluation in the window says how it began.
            known, since = since[:1], since[1:]

        def best(values: Sequence[float]) -> float | None:
            return min(values, key=lambda x: as_cost(x, mode), default=None)

        validation = (best(known), best(since))
        return cls(improvement, error, validation, monitor, mode)

    @property
    def training_improves(self) -> bool:
        """Whether the training loss fell by more than its noise."""
        return self.improvement > 0 and self.improvement >= self.error

    @property
    def improves(self) -> bool | None:
        """Whether the run learned in the window, by validation if there is one.

        None while that is unknown: validation was not measured, or training says the opposite.
        """
        if self.validation is None:
            return self.training_improves
        before, since = self.validation
        if before is None or since is None:
            return None
        if as_cost(since, self.mode) < as_cost(before, self.mode) - LEAST * abs(before):
            return True
        return None if self.training_improves else False

    def evidence(self) -> dict[str, Any]:
        """Return the numbers, as events hold them."""
        before, since = self.validation or (None, None)
        return {
            "improvement": self.improvement,
            "standard_error": self.error / 2,
            f"{self.monitor}_before": before,
            f"{self.monitor}_since": since,
        }

    def __str__(self) -> str:
        than = "more" if self.training_improves else "less"
        before, since = self.validation or (None, None)
        what = "validation loss" if self.monitor == "val_loss" else self.monitor
        if self.validation is None:
            known = "it was judged without validation"
        elif before is None:
            known = "validation has not been measured yet"
        elif since is None:
            known = (
                f"validation has not been measured again (the best {what} is {before:.4g} so far)"
            )
        else:
            known = f"the best {what} was {before:.4g} before and {since:.4g} since"
        return (
            f"the loss improved by {self.improvement:.3g}, {than} than two standard errors "
            f"({self.error:.3g}), and {known}"
        )


@define(eq=False)
class StallWindow:
    """The last recorded steps on which stall counts, up to ``stall_window`` of them."""

    config: TrainConfig
    steps: deque[tuple[int, float, float]] = field(init=False)
    """(step, loss, stall rate)."""

    def __attrs_post_init__(self) -> None:
        self.steps = deque(maxlen=self.config.stall_window)

    def add(self, step: int, loss: float, rate: float, learning_rate: float) -> bool:
        """Keep a step if stall counts on it; return whether it does."""
        at_least = 0.5 * self.config.learning_rate
        counts = step > self.config.warmup_steps and learning_rate >= at_least
        if counts:
            self.steps.append((step, loss, rate))
        return counts

    def stalled(
        self, threshold: float, evaluations: Sequence[Evaluation] | None = None
    ) -> tuple[float, Trend] | None:
        """Return mean stall rate and trend of a full window, if the rate is above ``threshold``.

        See `Trend.of` for ``evaluations``.
        """
        if len(self.steps) < self.config.stall_window:
            return None
        rate = fmean(rate for _, _, rate in self.steps)
        if rate <= threshold:
            return None
        losses = [(step, loss) for step, loss, _ in self.steps]
        return rate, Trend.of(losses, evaluations, self.config.monitor, self.config.direction)

    def state_dict(self) -> list[list[float]]:
        """Return what a checkpoint needs."""
        return [list(step) for step in self.steps]

    def load_state_dict(self, state: Sequence[Sequence[Any]]) -> None:
        """Restore what `state_dict` returned."""
        self.steps.extend((step, loss, rate) for step, loss, rate in state)


@frozen
class Finding:
    """The detector's judgement of one cause in a step."""

    reason: str
    numbers: Mapping[str, Any]
    is_collapse: bool | None = True
    """None while it is unknown: then it is a warning, and a collapse told before goes on."""
    about: frozenset[str] = frozenset()
    """The subjects of a warning, each told once. Empty if no warning is due."""


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
    window: StallWindow = field(init=False)
    recent: deque[tuple[int, float]] = field(init=False)
    """(step, loss) after warm-up, over which a dead gradient is judged."""
    evaluations: list[Evaluation] = field(init=False, factory=list)
    """Of those before both windows the best."""
    warned: set[str] = field(init=False, factory=set)
    harmless: set[str] = field(init=False, factory=set)
    """Parameters whose gradient was dead while the run learned: it does without."""

    def __attrs_post_init__(self) -> None:
        self.losses = deque(maxlen=SMOOTH)
        self.window = StallWindow(self.config)
        self.recent = deque(maxlen=max(FEWEST, self.config.dead_neuron_window))

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
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Judge a step; return the evidence of each new collapse, and of each new warning.

        ``is_forgiven``: the format was shifted or the state rolled back in this step, so that it
        is not counted as non-finite, and enters no window: these begin after it. ``counts``: a
        non-finite step that does not count leaves the number of consecutive ones as it is.
        ``stall`` is (``stored`` or ``view``, rate) of the last recorded update, ``dead`` the
        number of consecutive steps that each parameter's gradient has been dead.
        """
        found = {"nan_patience": self._nan(is_finite or is_forgiven, counts)}
        if is_finite:
            self.seen += 1
            start = self.first_loss = loss if self.first_loss is None else self.first_loss
            if not is_forgiven:
                found["diverged"] = self._diverged(loss, start)
                if step > self.config.warmup_steps:
                    self.recent.append((step, loss))
                if stall is not None and self.window.add(step, loss, stall[1], learning_rate):
                    found["stalled"] = self._stalled(stall[0])
        found["dead_gradients"] = self._dead(dead or {})
        collapses, warnings = [], []
        for cause, finding in found.items():
            if finding is None or finding.is_collapse is False:
                self.active.discard(cause)
            if finding is None:
                continue
            evidence = {"cause": cause, "reason": finding.reason, **finding.numbers}
            if finding.is_collapse and cause not in self.active:
                self.active.add(cause)
                collapses.append(evidence)
            elif not finding.is_collapse and finding.about - self.warned:
                warnings.append(evidence)
            self.warned |= finding.about
        return collapses, warnings

    def evaluated(self, step: int, value: float) -> None:
        """Keep the value of `monitor` in an evaluation, which comes after the step was observed."""
        mode = self.config.direction
        began = [window[0][0] for window in (self.window.steps, self.recent) if window]
        old = [e for e in self.evaluations if e[0] <= min(began, default=step)]
        kept = [min(old, key=lambda e: as_cost(e[1], mode))] if old else []
        value = value if math.isfinite(value) else as_cost(math.inf, mode)
        self.evaluations = [*kept, *self.evaluations[len(old) :], (step, value)]

    def start_anew(self) -> None:
        """Forget the windows: the recipe was changed, or the state rolled back."""
        self.nonfinite = 0
        self.losses.clear()
        self.window.steps.clear()
        self.recent.clear()
        self.evaluations.clear()
        self.active -= {"nan_patience", "diverged", "stalled"}
        self.warned.discard("stall")

    @property
    def _known_evaluations(self) -> list[Evaluation] | None:
        return self.evaluations if self.config.eval_interval else None

    def _nan(self, is_finite: bool, counts: bool) -> Finding | None:
        self.nonfinite = 0 if is_finite else self.nonfinite + counts
        patience = self.config.nan_patience
        if self.nonfinite < patience:
            return None
        reason = f"{self.nonfinite} consecutive steps were not finite (nan_patience {patience})"
        return Finding(reason, {"consecutive": self.nonfinite})

    def _diverged(self, loss: float, start: float) -> Finding | None:
        self.losses.append(loss)
        now, ratio = fmean(self.losses), self.config.diverged_ratio
        is_known = self.seen > FIRST + SMOOTH and len(self.losses) == SMOOTH
        if not is_known or now <= start + (ratio - 1) * abs(start):
            return None
        reason = (
            f"the loss of the last {SMOOTH} steps, {now:.4g}, is more than "
            f"{digits(ratio)} times the {start:.4g} that it started at"
        )
        return Finding(reason, {"loss_at_start": start, "loss_now": now})

    def _dead(self, dead: Mapping[str, int]) -> Finding | None:
        window = self.config.dead_neuron_window
        names = {name for name, steps in dead.items() if steps >= window}
        self.harmless &= names
        names -= self.harmless
        if not names:
            return None
        layers = sorted(names)
        threshold = digits(self.config.dead_neuron_threshold)
        reason = (
            f"the gradient of {', '.join(layers[:4])}{' and others' if len(layers) > 4 else ''} "
            f"was below {threshold} (root mean square) for {window} steps"
        )
        numbers: dict[str, Any] = {"dead_layers": layers}
        improves = None
        if len(self.recent) == self.recent.maxlen:
            judged_by = self.config.monitor, self.config.direction
            trend = Trend.of(list(self.recent), self._known_evaluations, *judged_by)
            improves = trend.improves
            reason, numbers = f"{reason}, while {trend}", numbers | trend.evidence()
        if improves:
            self.harmless |= names
        return Finding(reason, numbers, _opposite(improves), frozenset(names))

    def _stalled(self, which: str) -> Finding | None:
        found = self.window.stalled(self.config.bit_stall_threshold, self._known_evaluations)
        if found is None:
            return None
        rate, trend = found
        reason = (
            f"{rate:.1%} of {which} weight updates stalled over {len(self.window.steps)} recorded "
            f"steps (threshold {self.config.bit_stall_threshold:.0%}), while {trend}"
        )
        is_collapse = _opposite(trend.improves)
        if which == "view":
            is_collapse = False
            reason += "; float32 masters keep what their views do not show yet"
        numbers = {
            "stall_of": which,
            "rate": rate,
            "window": len(self.window.steps),
            **trend.evidence(),
        }
        about = () if trend.training_improves else ("stall",)
        return Finding(reason, numbers, is_collapse, frozenset(about))

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        return {
            "nonfinite": self.nonfinite,
            "active": sorted(self.active),
            "first_loss": self.first_loss,
            "seen": self.seen,
            "losses": list(self.losses),
            "window": self.window.state_dict(),
            "recent": [list(pair) for pair in self.recent],
            "evaluations": [list(pair) for pair in self.evaluations],
            "warned": sorted(self.warned),
            "harmless": sorted(self.harmless),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.nonfinite = state["nonfinite"]
        self.active = set(state["active"])
        self.first_loss, self.seen = state["first_loss"], state["seen"]
        self.losses.extend(state["losses"])
        self.window.load_state_dict(state["window"])
        self.recent.extend((step, loss) for step, loss in state["recent"])
        self.evaluations = [(step, value) for step, value in state["evaluations"]]
        self.warned, self.harmless = set(state["warned"]), set(state["harmless"])


def _squared_error(losses: Sequence[float]) -> float:
    """Return the square of the mean's standard error (statistics.variance is exact and slow)."""
    mean = fmean(losses)
    return math.fsum((x - mean) ** 2 for x in losses) / (len(losses) - 1) / len(losses)


def _opposite(improves: bool | None) -> bool | None:
    return None if improves is None else not improves
