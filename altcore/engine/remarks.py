"""What a user should know before the first step: settings that do something else than they say."""

from __future__ import annotations

import threading

from attrs import fields_dict

from altcore.config import TrainConfig
from altcore.engine.schedule import learning_rate
from altcore.quantization import Quantization
from altcore.recipes import takes_format


def about_recipe(config: TrainConfig, quantization: Quantization) -> list[str]:
    """Tell of a recipe that quantizes nothing, and of formats that cannot hold their tensors."""
    default = fields_dict(TrainConfig)["recipe"].default
    remarks = []
    if config.format is None and config.recipe != default and takes_format(config.recipe):
        remarks.append(
            f"recipe {config.recipe_name} without a format quantizes nothing: give --format"
        )
    roles: dict[str, set[str]] = {}
    for casts in quantization.plan.values():
        for operand, cast in casts.items():
            if cast is not None and not cast.element.signed:
                roles.setdefault(cast.format.name, set()).add(operand.partition("@")[0])
    remarks += [
        f"{name} has no negative values, and is the format of {', '.join(sorted(own))}, which "
        "have elements of both signs"
        for name, own in roles.items()
    ]
    return remarks


def about_thread() -> list[str]:
    """Tell of a run that hears no signals, which Python delivers to the main thread alone."""
    if threading.current_thread() is threading.main_thread():
        return []
    return [
        "the run is not in the main thread, so it handles no signals: SIGTERM and Ctrl-C do what "
        "the process has them do, without a checkpoint of the last step"
    ]


def about_warmup(config: TrainConfig) -> list[str]:
    """Tell of a run that ends before its warm-up."""
    last, warmup = config.max_steps, config.warmup_steps
    if last >= warmup:
        return []
    reached = learning_rate(config, last)
    return [
        f"the warm-up of {warmup} steps is longer than the run of {last}: the learning rate "
        f"reaches {reached:.3g} of {config.learning_rate:.3g} (warmup_steps)"
    ]


def about_schedule(planned: int | None, config: TrainConfig, step: int) -> list[str]:
    """Tell what becomes of the learning rate of a run that goes on after ``step``.

    ``planned`` are the steps that it was to make before.
    """
    if planned is None or planned == config.max_steps:
        return []
    before = learning_rate(config.evolve(max_steps=planned), step)
    now = learning_rate(config, step + 1)
    return [
        f"the run was to make {planned} steps and is to make {config.max_steps}: the schedule is "
        f"that of {config.max_steps} steps from now on, and the learning rate, {before:.3g} at "
        f"step {step}, is {now:.3g} at step {step + 1}"
    ]
