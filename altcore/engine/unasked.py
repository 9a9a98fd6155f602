"""What plugins change where no plugin may, or past the engine's own numbers: it is named.

It is what they asked for, so the run goes on. But the record does not show it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from altcore.engine.plugins import Plugin
from altcore.engine.state import Run, Step
from altcore.engine.trespass import address, version
from altcore.log import log
from altcore.recipes import some

STILL = ("run_start", "on_nan", "on_collapse", "on_eval", "on_event", "run_end")
"""Hooks that are seldom called, and in which no plugin may change weights."""

Weights = Mapping[str, tuple[int, int]]
"""Version and memory of each parameter, by name."""


def weights_of(model: nn.Module) -> Weights:
    """Return by what the weights are known: no value is read."""
    return {name: (version(p), address(p)) for name, p in model.named_parameters()}


def tell_changed_weights(run: Run, plugin: Plugin, hook: str, before: Weights) -> None:
    """Warn, once, if a hook that may change nothing changed weights."""
    now = weights_of(run.model)
    if changed := [name for name in before if now.get(name) != before[name]]:
        _tell(
            run,
            f"{plugin} changed {some(changed)} in {hook}, where no plugin may change weights: "
            "checkpoints may hold other weights than were evaluated",
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
        if run.rank == 0:
            log.warning(message)
