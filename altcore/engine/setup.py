"""Checking and building everything that a run needs, before its directory is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from altcore.config import IN_STEPS, TrainConfig, notices, recorded
from altcore.engine.checked_optimizer import about_optimizer, check_optimizer
from altcore.engine.checked_workload import check_last_batch, check_workload
from altcore.engine.collapse import Detector
from altcore.engine.custom_workload import CustomWorkload
from altcore.engine.dispatch import Dispatcher
from altcore.engine.epochs import count_epochs, epoch_of, in_steps
from altcore.engine.evaluation import check_monitor
from altcore.engine.event_log import EventLog
from altcore.engine.going_on import check_given, go_on
from altcore.engine.hook_clock import HookClock, timing
from altcore.engine.identity import given_from_python, run_identity
from altcore.engine.loop import Engine
from altcore.engine.losses import loss_and_measures, who_is
from altcore.engine.memory import memory_named
from altcore.engine.named_errors import naming
from altcore.engine.observers import ObserverCheck
from altcore.engine.plugins import Plugin, load_plugins
from altcore.engine.probe import probing
from altcore.engine.randomness import seed_all
from altcore.engine.rank_checks import check_alike, check_shares, of_rank
from altcore.engine.ranks import Ranks, join
from altcore.engine.remarks import about_recipe, about_schedule, about_warmup
from altcore.engine.state import Run, Workload
from altcore.engine.state_checks import Built
from altcore.errors import BadInput, keyed, nearest
from altcore.formats import origins_recorded
from altcore.hooks import make_plugin
from altcore.log import log
from altcore.quantization import Quantization, find_layers, matrices
from altcore.recipes import formats_in, matching, some
from altcore.registry import Entry, find
from altcore.runs import (
    ENVIRONMENT,
    RUN_ID,
    SUMMARY,
    RunDirectory,
    UnwrittenDirectory,
    bring_back_environment,
    environment,
    find_run,
    no_space_named,
    set_aside,
    write_configuration,
)


def prepare(
    config: TrainConfig,
    *,
    model: nn.Module | None = None,
    batch: Callable[[str, int, int], Any] | None = None,
    resume: str | None = None,
    allow_change: Sequence[str] = (),
) -> Engine:
    """Check and build everything, then make the run's directory; returns the engine, ready.

    ``allow_change`` names what may be another than it was in the run that goes on. The directory of
    a run to ``resume`` is locked before anything is read of it.
    """
    named = no_space_named(Path(config.runs_dir))
    with origins_recorded(config.format_origins), named, ExitStack() as on_error:
        ranks, held = on_error.enter_context(join(config.device)), None
        if resume is not None:
            run, runs_dir = resume, config.runs_dir
            held = directory_of(ranks, lambda: RunDirectory.open(find_run(run, runs_dir)))
            on_error.callback(held.close)
        clock = HookClock(config.hook_timeout)
        with clock.watching():
            engine = _prepare(config, ranks, model, batch, held, allow_change, clock, on_error)
        on_error.pop_all()
    return engine


@memory_named()
def _prepare(
    config: TrainConfig,
    ranks: Ranks,
    own_model: nn.Module | None,
    batch: Callable[[str, int, int], Any] | None,
    held: RunDirectory | None,
    allow_change: Sequence[str],
    clock: HookClock,
    on_error: ExitStack,
) -> Engine:
    check_alike(config, ranks)
    given = given_from_python(own_model, batch)
    if held is not None:
        check_given(held, given, allow_change)
    device = choose_device(ranks.device(config.device))
    plugins = of_rank(load_plugins(config), ranks)
    seed_all(config.seed)
    workload = build_workload(config, device, own_model, batch)
    epoch = epoch_of(workload, config)
    config = in_steps(config, epoch)
    count_epochs(plugins, config, epoch)
    observers = ObserverCheck(config.check_observers)
    dispatch = Dispatcher(plugins, config.strict, observers, clock)
    model = workload.model
    freeze(model, config.freeze)
    ranks.follow(model)
    recipe = config.make_recipe()
    quantization = Quantization(model, recipe, config.compute, config.seed)
    if config.shared_amax:
        ranks.share_amax(quantization)
    optimizer = _optimizer(config, model, quantization)
    owners = _owners(config, plugins)
    config = recorded(config, owners, formats_in(quantization.plan))
    # The model runs here for the first time: one that cannot run leaves no directory behind.
    facts: dict[str, Any] = {
        "format": _format_name(config, quantization),
        "first_formats": sorted(quantization.formats),
        "recipe": config.recipe_name,
        "compute": quantization.compute,
        "optimizer": config.optimizer,
        "workload": config.workload,
        "workload_facts": dict(workload.facts),
        "seed": config.seed,
        "max_steps": config.max_steps,
        **coverage_facts(workload, quantization, device, ranks),
    }
    check_last_batch(workload)
    check_shares(workload, ranks)
    check_monitor(config, workload, quantization, device)
    if config.compile:
        model.compile()
    identity = run_identity(config, owners, workload, quantization, device, given, ranks)
    remarks = about_recipe(config, quantization) + about_optimizer(optimizer, model)
    remarks += about_warmup(config)
    going_on = None
    if held is None:
        config = config.evolve(changes=())
        directory = directory_of(ranks, partial(RunDirectory.create, config))
        on_error.callback(directory.close)
        opening = ("start", {"name": directory.path.name, **facts})
    else:
        directory = held
        into = Built(config, device, model, optimizer, quantization, plugins)
        going_on = go_on(directory, config, identity, allow_change, into)
        ranks.check_same("the checkpoint", going_on.checkpoint.path.name)
        config = going_on.config
        identity["configuration"]["changes"] = list(config.changes)  # for the next one to go on
        opening = ("resume", going_on.told)
        remarks += about_schedule(going_on.planned, config, going_on.step)
        remarks += going_on.remarks
    events = EventLog(directory, dispatch)
    built = (workload, model, optimizer, quantization)
    run = Run(
        config,
        directory.path,
        device,
        *built,
        events,
        rank=ranks.rank,
        world_size=ranks.world_size,
        epoch=epoch,
    )
    for remark in remarks if ranks.rank == 0 else ():
        log.warning(remark)
    remarks += quantization.missed()
    engine = Engine(
        run,
        directory,
        dispatch,
        events,
        Detector(config),
        facts,
        opening,
        identity,
        remarks,
        is_from_seed=own_model is None,
        ranks=ranks,
    )
    ranks.seed(config.seed)
    if going_on is None:
        origins = {p.name: p.origin for p in plugins}
        about = {
            RUN_ID: directory.run_id,
            **environment(device, origins),
            "world_size": ranks.world_size,
            **facts,
        }
        directory.write_json(ENVIRONMENT, about)
    if going_on is None:
        for line in notices_of(config, workload) if ranks.rank == 0 else ():
            log.info(line)
    else:
        if directory.is_written:
            if bring_back_environment(directory, going_on.checkpoint.manifest):
                log.warning(f"{ENVIRONMENT} was missing, damaged or changed: it is put back")
            set_aside(directory.checkpoints, going_on.step, directory.run_id)
        directory.cut_logs(going_on.checkpoint.manifest["logs"])
        going_on.load_into(engine)
        directory.remove(SUMMARY)
        engine.saving.keep()
    write_configuration(directory, config)
    return engine


def directory_of(ranks: Ranks, make: Callable[[], RunDirectory]) -> RunDirectory:
    """Return the run's directory, which rank 0 alone makes and locks."""
    if ranks.rank:
        path, run_id = ranks.gather(("", ""))[0]
        return UnwrittenDirectory(Path(path), None, run_id=run_id)
    made = make()
    ranks.gather((str(made.path), made.run_id))
    return made


def _owners(config: TrainConfig, plugins: Sequence[Plugin]) -> dict[str, Any]:
    """Return all that has settings in the run, by name."""
    named = {"workload": config.workload, "optimizer": config.optimizer}
    built = {name: _buildable(kind, name, config)[1] for kind, name in named.items()}
    return built | {p.name: p.instance for p in plugins}


def notices_of(config: TrainConfig, workload: Workload) -> list[str]:
    """Return the lines that are logged when a run starts: settings given and not used."""
    own = workload.facts.get("notice")
    return [*notices(config.original), *([str(own)] if own else [])]


def _format_name(config: TrainConfig, quantization: Quantization) -> str:
    """The format that the run names, or those that its recipe has."""
    if config.format is not None:
        return config.format.name
    return ", ".join(sorted(quantization.formats)) or "none"


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


def build_workload(
    config: TrainConfig,
    device: torch.device,
    model: nn.Module | None,
    batch: Callable[[str, int, int], Any] | None,
) -> Workload:
    """Return the configuration's workload, with ``model`` or ``batch`` in the place of its own."""
    entry, settings = _buildable("workload", config.workload, config)
    who = f"workload {entry.name} ({entry.origin})"
    with naming(who, "build"):
        built = settings.build(config.seed, device)
    made = check_workload(built, who)
    if model is None and batch is None:
        return made
    return CustomWorkload(made, made.model if model is None else model.to(device), batch)


def counted_in_steps(config: TrainConfig) -> TrainConfig:
    """Return the configuration with all that it says in epochs said in steps alone."""
    if all(getattr(config, key) is None for key in IN_STEPS):
        return config
    workload = build_workload(config, torch.device("cpu"), None, None)
    counted = in_steps(config, epoch_of(workload, config))
    return counted.evolve(steps_per_epoch=None, **dict.fromkeys(IN_STEPS))


def _buildable(kind: str, name: str, config: TrainConfig) -> tuple[Entry, Any]:
    """Return a workload's or optimizer's entry, and its settings object."""
    with keyed(kind):
        entry = find(name, (kind,))
    with timing(f"{kind} {entry.name} ({entry.origin})", "its import"):
        settings = make_plugin(entry.load(), config.settings.get(name, {}), name)
    if not callable(getattr(settings, "build", None)):
        raise BadInput(f"{kind} {name} ({entry.origin}) has no method build")
    return entry, settings


def _optimizer(
    config: TrainConfig, model: nn.Module, quantization: Quantization
) -> torch.optim.Optimizer:
    entry, settings = _buildable("optimizer", config.optimizer, config)
    who = f"optimizer {entry.name} ({entry.origin})"
    with naming(who, "build"):
        made = settings.build(model.named_parameters(), quantization.grid_of)
    return check_optimizer(made, settings, model, who)


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


def coverage_facts(
    workload: Workload, quantization: Quantization, device: torch.device, ranks: Ranks
) -> dict[str, Any]:
    """Return the shares of the model that are quantized, as the run's facts hold them.

    If anything is quantized, the model runs for it: one micro-batch, forward and backward, in a
    probe.
    """
    q, model = quantization, workload.model
    if q.layers:
        batch = ranks.share(workload, workload.batch("train", 1, 0))
        named = naming(who_is(workload), "loss")
        with memory_named(model), named, probing(model, q, device):
            q.count_flops(lambda: loss_and_measures(workload, model, batch)[0].backward())
    coverage = q.coverage()
    return {
        "parameter_share": coverage.parameter_share,
        "flop_share": coverage.flop_share if q.layers else 0.0,
        "flop_share_by_operand": dict(coverage.flop_share_by_operand),
        "head": coverage.head,
        "left_out": coverage.left_out,
    }
