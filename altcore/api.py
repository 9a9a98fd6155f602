"""altcore from Python: everything is checked, built, and only then written to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog
import torch
from attrs import define, field, frozen
from torch import Tensor, nn

from altcore import config as configuration
from altcore.checkpoint import load_newest
from altcore.config import TrainConfig
from altcore.detect import Detector
from altcore.dispatch import Dispatcher, load_plugins
from altcore.engine import Engine
from altcore.errors import BadInput, nearest
from altcore.flat import notices
from altcore.randomness import seed_all
from altcore.recipe import Layer, matching, some
from altcore.record import (
    METRICS,
    RunDirectory,
    environment,
    find_run,
    read_lines,
    write_configuration,
)
from altcore.registry import Entry, find
from altcore.settings import build
from altcore.state import Run, Workload
from altcore.surgery import Quantization
from altcore.surgery.layers import find_layers, matrices, tied_matrices
from altcore.surgery.quantizer import Clock

log = structlog.get_logger("altcore")


@frozen
class Result:
    """What came of a run."""

    format_name: str
    status: str
    """finished, collapsed or stopped."""
    steps_completed: int
    final_loss: float | None
    failure_step: int | None
    failure_reason: str | None
    format_shifted_to: str | None
    shift_step: int | None
    metrics_history: list[dict[str, Any]] = field(repr=False)
    """The engine's own numbers, a dict a recorded step."""
    diagnostics_history: list[dict[str, Any]] = field(repr=False)
    """The plugins' measures, a dict a step on which one measured."""
    failure_report_path: Path | None
    run_directory: Path
    summary: dict[str, Any] = field(repr=False)


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


def train(
    config: TrainConfig | Mapping[str, Any] | str | Path | None = None,
    model: nn.Module | None = None,
    data: Any = None,
    device: str | None = None,
    *,
    resume: str | None = None,
) -> Result:
    """Train, and return what came of it.

    ``config`` is a `TrainConfig`, a mapping of its keys, or a YAML file. ``model`` takes the
    place of the workload's, ``data`` that of its data: a path, or a function
    ``(split, step, micro) -> batch``. ``resume`` names a run in the configuration's ``runs_dir``
    to go on with. It trains under `torch.no_grad` and `torch.inference_mode`, too. Raises
    `BadInput` before anything is written, and `AltcoreError` for failures; a collapse is a
    result.
    """
    if not (data is None or callable(data) or isinstance(data, str | Path)):
        raise BadInput(
            f"data: a path or a function (split, step, micro) -> batch is needed, not {data!r:.60}"
        )
    if not (model is None or isinstance(model, nn.Module)):
        raise BadInput(f"model: a torch.nn.Module is needed, not {model!r:.60}")
    if model is not None and _is_for_inference(model):
        raise BadInput("model: it was made under torch.inference_mode, and cannot be trained")
    given = _as_config(config)
    if device is not None:
        given = given.evolve(device=device)
    if isinstance(data, str | Path):
        own = {**given.settings.get(given.workload, {}), "data": str(data)}
        given = given.evolve(settings={**given.settings, given.workload: own})
    batch = data if callable(data) else None
    # The caller may have switched gradients off.
    with torch.inference_mode(False), torch.enable_grad():
        engine = prepare(given, model=model, batch=batch, resume=resume)
        try:
            return result(engine.train(), given)
        finally:
            # The model may be the caller's own.
            engine.run.quantization.remove()


def _is_for_inference(model: nn.Module) -> bool:
    tensors = (*model.parameters(), *model.buffers())
    return any(t.is_inference() for t in tensors if not nn.parameter.is_lazy(t))


def _as_config(config: TrainConfig | Mapping[str, Any] | str | Path | None) -> TrainConfig:
    if isinstance(config, TrainConfig):
        return config
    if isinstance(config, Mapping):
        return configuration.load(overrides=[(k, v, "") for k, v in config.items()])
    if not (config is None or isinstance(config, str | Path)):
        raise BadInput(f"config: keys or a YAML file are needed, not {config!r:.60}")
    return configuration.load(config)


def resumed(name: str, runs_dir: str, **changes: Any) -> TrainConfig:
    """Return the configuration of a run that is to go on, with ``changes`` (max_steps, device)."""
    path = find_run(name, runs_dir)
    plain = configuration.read_mapping(path / "config.yaml", "run")
    given = {k: v for k, v in changes.items() if v is not None}
    return configuration.make({**plain, **given, "runs_dir": runs_dir})


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
    workload = _workload(config, device, model, batch)
    freeze(workload.model, config.freeze)
    clock = Clock(config.seed)
    quantization = Quantization(workload.model, config.make_recipe(), config.compute, clock)
    optimizer = _optimizer(config, workload.model, quantization)
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
    write_configuration(directory, config)
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
    return engine


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


def _workload(
    config: TrainConfig,
    device: torch.device,
    model: nn.Module | None,
    batch: Callable[[str, int, int], Any] | None,
) -> Workload:
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


def layers_of(config: TrainConfig) -> tuple[list[Layer], list[list[str]], dict[str, Any]]:
    """Return the layers of the configuration's model, the names that share a parameter, and facts.

    The facts are what the workload says of itself.
    """
    workload = _workload(config, torch.device("cpu"), None, None)
    layers = [layer for layer, _ in find_layers(workload.model).values()]
    return layers, [names for names, _ in tied_matrices(workload.model)], dict(workload.facts)


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


def result(summary: Mapping[str, Any], config: TrainConfig) -> Result:
    """Return the `Result` of a run that ended with ``summary``."""
    directory = Path(summary["directory"])
    lines = [x for x in read_lines(directory / METRICS) if "loss" in x]
    shift = summary["shifts"][-1] if summary["shifts"] else None
    reports = [directory / r for r in summary["reports"]]
    return Result(
        format_name=summary["format"],
        status=summary["status"],
        steps_completed=summary["steps"],
        final_loss=summary["final_loss"],
        failure_step=summary["failure_step"],
        failure_reason=summary["failure_reason"],
        format_shifted_to=(", ".join(shift["to"]) or "none") if shift else None,
        shift_step=shift["step"] if shift else None,
        metrics_history=[{k: v for k, v in x.items() if "/" not in k} for x in lines],
        diagnostics_history=[
            {k: v for k, v in x.items() if "/" in k or k == "step"}
            for x in lines
            if any("/" in k for k in x)
        ],
        failure_report_path=next((r for r in reports if r.name.startswith("failure")), None),
        run_directory=directory,
        summary=dict(summary),
    )
