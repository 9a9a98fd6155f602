"""Epochs: how they count in steps, and which batch of the training split comes when."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from attrs import frozen

from altcore.builtin_types import digits, misfit
from altcore.config import IN_STEPS, TrainConfig
from altcore.engine.plugins import Plugin
from altcore.errors import BadInput


@frozen
class Epoch:
    """One pass over the training split of a workload that has ``steps_per_epoch``."""

    batches: int
    """Micro-batches in an epoch."""
    accumulation: int
    """Micro-batches in a step."""

    @property
    def steps(self) -> Fraction:
        """Steps in an epoch. It is whole if the run counts anything in epochs."""
        return Fraction(self.batches, self.accumulation)

    def after(self, step: int) -> float:
        """Return the epochs whose batches have been drawn when ``step`` is over."""
        return float(step / self.steps)


def epoch_of(workload: Any, config: TrainConfig) -> Epoch | None:
    """Return a workload's epoch; None if it has none."""
    batches = getattr(workload, "steps_per_epoch", None)
    return None if batches is None else Epoch(batches, config.gradient_accumulation_steps)


def training_batch(workload: Any, epoch: Epoch | None, step: int, micro: int) -> Any:
    """Return a micro-batch of a step; with epochs, micro-batches are numbered through, from 1."""
    if epoch is None:
        return workload.batch("train", step, micro)
    return workload.batch("train", (step - 1) * epoch.accumulation + micro + 1, 0)


def in_steps(config: TrainConfig, epoch: Epoch | None) -> TrainConfig:
    """Return the configuration with what it says in epochs also said in steps.

    Raises `BadInput` if the workload has no epochs, or they cannot be counted in whole steps.
    """
    key = next((key for key in IN_STEPS if getattr(config, key) is not None), None)
    if key is None:
        return config
    steps = whole_steps(config, epoch, key)
    made: dict[str, int] = {"steps_per_epoch": steps}
    if config.epochs is not None:
        made["max_steps"] = max(1, _steps_of(config.epochs, steps, "epochs"))
    if config.warmup_epochs is not None:
        made["warmup_steps"] = _steps_of(config.warmup_epochs, steps, "warmup_epochs")
    if config.evals_per_epoch is not None:
        if config.evals_per_epoch > steps:
            problem = f"{config.evals_per_epoch} is more than the {steps} steps of an epoch"
            raise BadInput(problem, key="evals_per_epoch")
        made["eval_interval"] = _nearest(Fraction(steps, config.evals_per_epoch))
    return config.evolve(**made)


def whole_steps(config: TrainConfig, epoch: Epoch | None, key: str) -> int:
    """Return the steps of an epoch; `BadInput` of ``key``, which counts epochs, if they are none.

    An epoch must end with a step.
    """
    if epoch is None:
        raise BadInput(
            f"the workload {config.workload} with these data does not count epochs",
            key=key,
            hint=f"use {IN_STEPS.get(key, 'an interval in steps')}",
        )
    if epoch.batches % epoch.accumulation:
        fitting = [n for n in range(1, epoch.batches + 1) if epoch.batches % n == 0]
        nearby = sorted(fitting, key=lambda n: abs(n - epoch.accumulation))[:3]
        raise BadInput(
            f"{epoch.accumulation} does not divide the {epoch.batches} micro-batches of an epoch, "
            f"which {key} counts",
            key="gradient_accumulation_steps",
            hint=f"{' or '.join(map(str, sorted(nearby)))} would, or another batch_size",
        )
    return epoch.batches // epoch.accumulation


def evaluation_interval(config: TrainConfig, epoch: Epoch | None) -> int | Fraction:
    """Return the steps between evaluations, to the fraction of a step; 0 is only at the end."""
    if config.evals_per_epoch is None or epoch is None:
        return config.eval_interval
    return epoch.steps / config.evals_per_epoch


def count_epochs(plugins: Iterable[Plugin], config: TrainConfig, epoch: Epoch | None) -> None:
    """Tell the plugins that have settings in epochs how many steps these are."""
    for plugin in plugins:
        steps = {}
        for name, epochs in plugin.epochs.items():
            key = f"{plugin.name}.{name}"
            steps[name] = whole_steps(config, epoch, key) * epochs
            if steps[name] < 1:
                problem = f"{digits(float(epochs))} epoch is less than a step"
                raise BadInput(problem, key=key)
            _check_count(steps[name], epochs, key)
        if steps:
            plugin.count_steps(steps)


def _steps_of(epochs: float, steps: int, key: str) -> int:
    """Return the steps nearest to ``epochs`` of ``steps`` each."""
    count = _nearest(Fraction(epochs) * steps)
    _check_count(count, epochs, key)
    return count


def _check_count(steps: int | Fraction, epochs: float | Fraction, key: str) -> None:
    if problem := misfit(_nearest(Fraction(steps)), int):
        raise BadInput(f"{digits(float(epochs))} epochs: their number of steps {problem}", key=key)


def _nearest(x: Fraction) -> int:
    return math.floor(x + Fraction(1, 2))
