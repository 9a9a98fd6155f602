"""Everything that a run needs, checked and built before its directory is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog
import torch
from attrs import define
from torch import Tensor, nn

from altcore.config import TrainConfig, make, notices, recorded
from altcore.engine.collapse import Detector
from altcore.engine.dispatch import Dispatcher, Plugin, load_plugins
from altcore.engine.loop import Engine
from altcore.engine.randomness import seed_all
from altcore.engine.state import Run, Workload
from altcore.errors import BadInput, nearest
from altcore.hooks import build
from altcore.quantization import Clock, Quantization, find_layers, matrices
from altcore.recipes import formats_in, matching, some
from altcore.registry import Entry, find
from altcore.runs import RunDirectory, environment, find_run, load_newest, write_configuration
from altcore.yaml_files import read_mapping

log = structlog.get_logger("altcore")


@define(eq=False)
class Substituted:
    """A workload with another model or other data."""

    base: Workload
    model: nn.Module
    batch: Callable[[str, int, int], Any]

    @property
    def items_per_batch(self) -> int:
        """Items in a batch, for throughput."""
        return self.base.items_per_batch

    @property
    def item(self) -> str:
        """What an item is called."""
        return self.base.item

    @property
    def facts(self) -> Mapping[str, str | int | float]:
        """What the workload says of itself."""
        return self.base.facts

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the workload's loss."""
        return self.base.loss(model, batch)


def resumed(name: str, runs_dir: str, **changes: Any) -> TrainConfig:
    """Return the configuration of a run that is to go on, with ``changes`` (max_steps, device)."""
    path = find_run(name, runs_dir)
    plain = read_mapping(path / "config.yaml", "run")
    given = {k: v for k, v in changes.items() if v is not None}
    return make({**plain, **given, "runs_dir": runs_dir})


def prepare(
    config: TrainConfig,
    *,
    model: nn.Module | None = None,
    batch: Callable[[str, int, int], Any] | None = None,
    resume: str | None = None,
) -> Engine:
    """Check and build everything, then make the run's directory; returns the engine, ready."""
    device = choose_device(config.device)
    plugins = load_plugins(config)
    seed_all(config.seed)
    workload = build_workload(config, device, model, batch)
    freeze(workload.model, config.freeze)
    clock = Clock(config.seed)
    quantization = Quantization(workload.model, config.make_recipe(), config.compute, clock)
    optimizer = _optimizer(config, workload.model, quantization)
    config = recorded(config, _owners(config, plugins), formats_in(quantization.plan))
    facts: dict[str, Any] = {
        "format": _format_name(config, quantization),
        "recipe": config.recipe_name,
        "compute": quantization.compute,
    }
    state = None
    if resume is not None:
        path = find_run(resume, config.runs_dir)
        state, _, source = load_newest(path / "checkpoints")
        if state["step"] >= config.max_steps:
            raise BadInput(
                f"--resume {resume}: the run is at step {state['step']} of {config.max_steps}; "
                "give --steps a larger number to go on"
            )
    run = Run(
        config,
        Path(config.runs_dir),
        device,
        workload,
        workload.model,
        optimizer,
        quantization,
        _early,
    )
    dispatch = Dispatcher(plugins, config.strict)
    # The model runs here for the first time: what cannot run leaves no directory behind.
    facts |= {**covered(run), "workload": dict(workload.facts)}
    if config.compile:
        run.model.compile()
    directory = RunDirectory.create(config) if resume is None else RunDirectory.open(path)
    run.directory = directory.path
    engine = Engine(run, directory, dispatch, Detector(config), facts)
    engine.remarks = quantization.missed()
    run.emit, dispatch.on_broken = engine.emit, engine.on_broken
    if state is None:
        origins = {p.name: p.origin for p in plugins}
        about = {**environment(device, origins), "seed": config.seed, **facts}
        directory.write_json("environment.json", about)
        for line in told(config, workload):
            log.info(line)
        engine.opening = ("start", {"name": directory.path.name, **facts})
    else:
        engine.load_state_dict(state)
        directory.drop_after(run.step)
        engine.opening = ("resume", {"checkpoint": source.name})
    write_configuration(directory, config)
    return engine


def _owners(config: TrainConfig, plugins: Sequence[Plugin]) -> dict[str, Any]:
    """Return all that has settings in the run, by name."""
    named = {"workload": config.workload, "optimizer": config.optimizer}
    built = {name: _buildable(kind, name, config)[1] for kind, name in named.items()}
    return built | {p.name: p.instance for p in plugins}


def told(config: TrainConfig, workload: Workload) -> list[str]:
    """Return what is said, a line each, when a run starts: what was given and is not used."""
    own = workload.facts.get("notice")
    return [*notices(config.original), *([str(own)] if own else [])]


def _format_name(config: TrainConfig, quantization: Quantization) -> str:
    """The format that the run names, or those that its recipe has."""
    if config.format is not None:
        return config.format.name
    return ", ".join(sorted(quantization.formats)) or "none"


def _early(event: str, **data: Any) -> None:
    raise AssertionError(f"event {event} before the engine was built")


def choose_device(name: str) -> torch.device:
    """Return the device called ``name``, ``auto`` being CUDA where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise BadInput(f"device: {name} is not here ({count} CUDA devices): use cpu or auto")
    return device


def build_workload(
    config: TrainConfig,
    device: torch.device,
    model: nn.Module | None,
    batch: Callable[[str, int, int], Any] | None,
) -> Workload:
    """Return the configuration's workload, with ``model`` or ``batch`` in the place of its own."""
    _, settings = _buildable("workload", config.workload, config)
    made: Workload = settings.build(config.seed, device)
    if model is None and batch is None:
        return made
    given = made.model if model is None else model.to(device)
    return Substituted(made, given, batch or made.batch)


def _buildable(kind: str, name: str, config: TrainConfig) -> tuple[Entry, Any]:
    """Return a workload's or optimizer's entry, and its settings object."""
    entry = find(name, (kind,))
    settings = build(entry.load(), config.settings.get(name, {}), name)
    if not callable(getattr(settings, "build", None)):
        raise BadInput(f"{kind} {name} ({entry.origin}) has no method build")
    return entry, settings


def _optimizer(
    config: TrainConfig, model: nn.Module, quantization: Quantization
) -> torch.optim.Optimizer:
    entry, settings = _buildable("optimizer", config.optimizer, config)
    made = settings.build(model.named_parameters(), quantization.grid_of)
    if not isinstance(made, torch.optim.Optimizer):
        raise BadInput(
            f"optimizer {entry.name} ({entry.origin}): build returned {type(made).__name__}, "
            "not a torch.optim.Optimizer"
        )
    return made


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Let the matrices of the layers that the patterns mean keep their values: no gradients.

    Patterns are those of recipes. Raises `BadInput` for one that matches no layer.
    """
    found = find_layers(model)
    layers = [layer for layer, _ in found.values()]
    for pattern in patterns:
        hits = matching(layers, pattern)
        if not hits:
            names = [layer.name for layer in layers]
            raise BadInput(
                f"freeze: {pattern!r} matches no layer{nearest(pattern, names)}: "
                f"layers are {some(names)}"
            )
        for layer in hits:
            for parameter in matrices(found[layer.name][1]).values():
                parameter.requires_grad_(False)


def covered(run: Run) -> dict[str, Any]:
    """Return what is quantized, as the run's facts hold it.

    Where anything is, the model runs for it: one micro-batch, forward and backward, in a probe.
    """
    q = run.quantization
    if q.layers:
        batch = run.workload.batch("train", 1, 0)
        with run.probe():
            q.count_flops(lambda: run.workload.loss(run.model, batch).backward())
    coverage = q.coverage()
    return {
        "parameter_share": coverage.parameter_share,
        "flop_share": coverage.flop_share if q.layers else 0.0,
        "flop_share_by_operand": dict(coverage.flop_share_by_operand),
        "head": coverage.head,
        "left_out": coverage.left_out,
    }
