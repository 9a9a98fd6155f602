"""Building what trains: plugins, the workload with its model, quantization, the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from attrs import frozen
from torch import nn

from altcore.config import IN_STEPS, TrainConfig, recorded
from altcore.engine.batch_digests import digest_of_weights
from altcore.engine.checked_optimizer import check_optimizer
from altcore.engine.checked_workload import check_workload
from altcore.engine.custom_workload import CustomWorkload
from altcore.engine.dispatch import Dispatcher
from altcore.engine.epochs import Epoch, count_epochs, epoch_of, in_steps
from altcore.engine.flag_watch import watched
from altcore.engine.model_alone import ModelAlone
from altcore.engine.model_state import misstated, without_memory, without_numbers
from altcore.engine.named_errors import naming
from altcore.engine.observers import ObserverCheck
from altcore.engine.plugins import Plugin, load_plugins
from altcore.engine.randomness import seed_all
from altcore.engine.rank_checks import check_model, of_rank
from altcore.engine.ranks import Ranks
from altcore.engine.state import Workload
from altcore.errors import BadInput, PluginError, keyed, nearest, shown
from altcore.hook_clock import HookClock
from altcore.hooks import make_plugin
from altcore.quantization import Quantization, find_layers, matrices
from altcore.recipes import formats_in, matching, some
from altcore.registry import find

Batches = Callable[[str, int, int], Any]
"""The caller's own data, in the place of a workload's ``batch``."""
Loss = Callable[[nn.Module, Any], Any]
"""The caller's own loss, in the place of a workload's ``loss``."""


@frozen(eq=False)
class Built:
    """What trains, before the run has a directory."""

    config: TrainConfig
    """All in steps, with what is to be recorded of its formats."""
    given: Mapping[str, Any]
    """What came from Python, as `identity_given` tells it."""
    owners: Mapping[str, Any]
    """Workload, optimizer and plugins, as their settings, by name."""
    device: torch.device
    workload: Workload
    epoch: Epoch | None
    quantization: Quantization
    optimizer: torch.optim.Optimizer
    dispatch: Dispatcher
    ranks: Ranks
    weights: str
    """The digest of the model's weights and buffers, before it was quantized."""

    @property
    def model(self) -> nn.Module:
        """The workload's, quantized in place."""
        return self.workload.model

    @property
    def plugins(self) -> Sequence[Plugin]:
        """Those that run on this rank, in the order in which they are called."""
        return self.dispatch.plugins


def build(
    config: TrainConfig,
    ranks: Ranks,
    clock: HookClock,
    model: nn.Module | None,
    batch: Batches | None,
    loss: Loss | None,
    given: Mapping[str, Any],
) -> Built:
    """Build what the configuration names, with what was passed in in the place of its own."""
    device = choose_device(ranks.device(config.device))
    plugins = of_rank(load_plugins(config), ranks)
    seed_all(config.seed)
    source = _settings_of("workload", config.workload, config)
    workload = _workload(source, config, device, model, batch, loss)
    weights = digest_of_weights(workload.model)
    epoch = epoch_of(workload, config)
    config = in_steps(config, epoch)
    count_epochs(plugins, config, epoch)
    observers = ObserverCheck(config.check_observers)
    dispatch = Dispatcher(plugins, config.strict, observers, clock)
    freeze(workload.model, config.freeze)
    check_model(workload.model, ranks)
    ranks.follow(workload.model)
    quantization = Quantization(workload.model, config.make_recipe(), config.compute, config.seed)
    if config.shared_amax:
        ranks.share_amax(quantization)
    stepper = _settings_of("optimizer", config.optimizer, config)
    optimizer = _optimizer(stepper, workload.model, quantization)
    owners = {config.workload: source.settings, config.optimizer: stepper.settings}
    owners |= {p.name: p.instance for p in plugins}
    config = recorded(config, owners, formats_in(quantization.plan))
    trained = (workload, epoch, quantization, optimizer, dispatch, ranks, weights)
    return Built(config, given, owners, device, *trained)


def build_workload(
    config: TrainConfig,
    device: torch.device,
    model: nn.Module | None = None,
    batch: Batches | None = None,
    loss: Loss | None = None,
) -> Workload:
    """Return the configuration's workload, with what was passed in in the place of its own."""
    source = _settings_of("workload", config.workload, config)
    return _workload(source, config, device, model, batch, loss)


def build_alone(
    config: TrainConfig,
    device: torch.device,
    model: nn.Module | None,
    facts: Mapping[str, str | int | float] | None,
) -> Workload | None:
    """Return the model without data; None if the workload needs its data to build it.

    Args:
        config: which names the workload.
        device: where the model goes.
        model: takes the place of the workload's.
        facts: which a run recorded of the workload; None if they are not those of its own data.
    """
    who = None
    if model is None:
        source = _settings_of("workload", config.workload, config)
        make, who = getattr(source.settings, "build_model", None), source.who
        if make is None or facts is None:
            return None
        with naming(who, "build_model"):
            model = make(config.seed, device, facts)
        if not isinstance(model, nn.Module):
            raise PluginError(f"{who}: build_model returned {shown(model)}, not a torch.nn.Module")
    _check_model(model, who)
    return ModelAlone(model.to(device), facts or {})


def given_data(config: TrainConfig, data: Any) -> tuple[TrainConfig, Batches | None]:
    """Return the configuration with data that the caller gave, if a path, and their batches if not.

    Raises `BadInput` for what is neither.
    """
    if isinstance(data, str | Path):
        own = {**config.settings.get(config.workload, {}), "data": str(data)}
        return config.evolve(settings={**config.settings, config.workload: own}), None
    if data is None or callable(data):
        return config, data
    problem = f"a path or a function (split, step, micro) -> batch is needed, not {shown(data)}"
    raise BadInput(problem, key="data")


def workload_settings(config: TrainConfig) -> Any:
    """Return the workload's settings, which build it."""
    return _settings_of("workload", config.workload, config).settings


def owners_of(config: TrainConfig) -> dict[str, Any]:
    """Return the workload, the optimizer and the plugins as their settings, by name; builds none.

    Raises:
        BadInput: for a name that is not installed, and for a setting that a run would refuse.
    """
    kinds = (("workload", config.workload), ("optimizer", config.optimizer))
    made = {name: _settings_of(kind, name, config).settings for kind, name in kinds}
    return made | {p.name: p.instance for p in load_plugins(config)}


def counted_in_steps(config: TrainConfig, batch: Batches | None = None) -> TrainConfig:
    """Return the configuration with all that it says in epochs said in steps alone.

    Epochs are the workload's own: with the caller's ``batch`` there are none.
    """
    if all(getattr(config, key) is None for key in IN_STEPS):
        return config
    workload = build_workload(config, torch.device("cpu"), batch=batch)
    counted = in_steps(config, epoch_of(workload, config))
    return counted.evolve(steps_per_epoch=None, **dict.fromkeys(IN_STEPS))


def choose_device(name: str) -> torch.device:
    """Return the device called ``name``; ``auto`` is CUDA if there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise BadInput(
                f"{name} is not here ({count} CUDA devices)", key="device", hint="use cpu or auto"
            )
    return device


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze the matrices of the layers that match a pattern: they get no gradients.

    Patterns are those of recipes. Raises `BadInput` for one that matches no layer.
    """
    found = find_layers(model)
    layers = [layer for layer, _ in found.values()]
    for pattern in patterns:
        hits = matching(layers, pattern)
        if not hits:
            names = [layer.name for layer in layers]
            raise BadInput(
                f"{pattern!r} matches no layer",
                key="freeze",
                meant=nearest(pattern, names),
                hint=f"layers are {some(names)}",
                item=pattern,
            )
        for layer in hits:
            for parameter in matrices(found[layer.name][1]).values():
                parameter.requires_grad_(False)


class _Settings(NamedTuple):
    """Those of a workload or an optimizer, which build it."""

    who: str
    """Kind, name and distribution, as errors name it."""
    settings: Any


def _settings_of(kind: str, name: str, config: TrainConfig) -> _Settings:
    with keyed(kind):
        entry = find(name, (kind,))
    who = f"{kind} {entry.name} ({entry.origin})"
    with watched(who, "its import"):
        settings = make_plugin(entry.load(), config.settings.get(name, {}), name)
    if not callable(getattr(settings, "build", None)):
        raise BadInput(f"{kind} {name} ({entry.origin}) has no method build")
    return _Settings(who, settings)


def _workload(
    source: _Settings,
    config: TrainConfig,
    device: torch.device,
    model: nn.Module | None,
    batch: Batches | None,
    loss: Loss | None,
) -> Workload:
    with naming(source.who, "build"):
        built = source.settings.build(config.seed, device)
    made = check_workload(built, source.who, device)
    _check_model(made.model if model is None else model, source.who if model is None else None)
    own = (made.model if model is None else model).to(device)
    if model is None and batch is None and loss is None:
        return made
    return CustomWorkload(made, own, batch, loss)


def _check_model(model: nn.Module, who: str | None) -> None:
    """Raise an error of the workload, or of the model passed in, if no checkpoint can hold it."""
    if name := without_numbers(model):
        problem = (
            f"{name} is on the device meta, and has no numbers: call model.to_empty(device=...) "
            "and initialize it, or build it on a device"
        )
    elif not (problem := without_memory(model) or misstated(model, model.state_dict()) or ""):
        return
    raise BadInput(problem, key="model") if who is None else PluginError(f"{who}: {problem}")


def _optimizer(
    source: _Settings, model: nn.Module, quantization: Quantization
) -> torch.optim.Optimizer:
    with naming(source.who, "build"):
        made = source.settings.build(model.named_parameters(), quantization.grid_of)
    return check_optimizer(made, source.settings, model, source.who)
