"""What plugins change where no plugin may, or past the engine's own numbers: it is named.

It is what they asked for, so the run goes on. But the record does not show it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from altcore.engine.plugins import Plugin
from altcore.engine.state import Run, Step
from altcore.engine.trespass import address, version
from altcore.recipes import some

STILL = ("run_start", "on_nan", "on_collapse", "on_eval", "on_event", "run_end")
"""Hooks that are seldom called, and in which no plugin may change weights."""

EACH_STEP = ("post_step", "on_record")
"""Likewise, but called in each step: there it is interventions that are looked at. What an observer
changes is put back."""

Weights = Mapping[int, tuple[int, int]]
"""The version of each parameter, and where its memory is, by its id."""


def weights_of(run: Run, plugin: Plugin, hook: str) -> Weights | None:
    """Return by what weights are known that a hook may not change, None if that is not looked at.

    No value is read. In each step it is the optimizer's own: a frozen one may be a plugin's to
    update, as a teacher's.
    """
    if hook in STILL:
        return _known(run.model.parameters())
    if hook in EACH_STEP and plugin.acts:
        return _known(p for group in run.optimizer.param_groups for p in group["params"])
    return None


def _known(parameters: Iterable[Tensor]) -> Weights:
    return {id(p): (version(p), address(p)) for p in parameters}


def tell_changed_weights(run: Run, plugin: Plugin, hook: str, before: Weights) -> None:
    """Warn, once, if a hook that may change nothing changed weights."""
    now = weights_of(run, plugin, hook) or {}
    if changed := {key for key in before if now.get(key) != before[key]}:
        named = run.model.named_parameters()
        names = [name for name, p in named if id(p) in changed] or ["weights"]
        then = "checkpoints may hold other weights than were evaluated"
        if hook in EACH_STEP:
            then = "stored ones may be off the grids of their formats"
        _tell(
            run,
            f"{plugin} changed {some(names)} in {hook}, where no plugin may change weights: {then}",
        )


def tell_changed_rates(run: Run, step: Step, acting: Sequence[Plugin]) -> None:
    """Warn, once, if the optimizer is about to use another learning rate than the step's.

    Args:
        run: whose optimizer it is.
        step: whose rate the engine has set.
        acting: the interventions with a hook since then.
    """
    if acting and any(_is_other(g["lr"], step.learning_rate) for g in run.optimizer.param_groups):
        _tell(
            run,
            f"{some([str(p) for p in acting])} changed lr of the optimizer's groups, which then "
            "uses another learning rate than metrics.jsonl has: propose ScaleLearningRate instead",
        )


def _is_other(rate: Any, own: float) -> bool:
    """Whether a rate is not the engine's own number: to compare a tensor would read the device."""
    return isinstance(rate, Tensor) or rate != own


def _tell(run: Run, message: str) -> None:
    if run.quantization.context.is_news(message):
        run.emit("warning", message=message, cause="plugin")
