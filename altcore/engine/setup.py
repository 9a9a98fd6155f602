"""Setting a run up: everything is checked and built before its directory is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from attrs import frozen
from torch import nn

from altcore.config import TrainConfig, notices
from altcore.engine.arithmetic import arithmetic
from altcore.engine.building import Batches, Built, Loss, build
from altcore.engine.checked_optimizer import about_optimizer
from altcore.engine.checked_workload import check_last_batch
from altcore.engine.collapse import Detector
from altcore.engine.evaluation import check_monitor
from altcore.engine.event_log import EventLog
from altcore.engine.facts import facts_of
from altcore.engine.given_parts import identity_given
from altcore.engine.global_hooks import about_global_hooks
from altcore.engine.going_on import GoingOn, check_given, go_on
from altcore.engine.identity import about_unknown, first_batch, run_identity
from altcore.engine.loop import Engine
from altcore.engine.memory import memory_named
from altcore.engine.rank_checks import about_unlike, agreed_identity, check_alike, check_shares
from altcore.engine.ranks import Ranks
from altcore.engine.recomputing import checkpoint_blocks
from altcore.engine.remarks import about_recipe, about_schedule, about_thread, about_warmup
from altcore.engine.resuming import origin_told
from altcore.engine.state import Run
from altcore.engine.torchrun import join
from altcore.formats import origins_recorded
from altcore.hook_clock import HookClock
from altcore.log import log
from altcore.runs import (
    ENVIRONMENT,
    INITIAL_WEIGHTS,
    RUN_ID,
    SUMMARY,
    RunDirectory,
    UnwrittenDirectory,
    bring_back_environment,
    code_given,
    code_of,
    environment,
    files_of,
    find_run,
    given_in,
    no_space_named,
    set_aside,
    write_configuration,
)


def prepare(
    config: TrainConfig,
    *,
    model: nn.Module | None = None,
    batch: Batches | None = None,
    loss: Loss | None = None,
    resume: str | None = None,
    allow_change: Sequence[str] = (),
) -> Engine:
    """Check and build everything, then make the run's directory; returns the engine, ready.

    ``allow_change`` names what may be another than it was in the run that goes on. The directory of
    a run to ``resume`` is locked before anything is read of it.
    """
    named = no_space_named(Path(config.runs_dir))
    with origins_recorded(config.format_origins), named, ExitStack() as on_error:
        ranks, held = on_error.enter_context(join(config.device, config.rank_timeout)), None
        if resume is not None:
            run, runs_dir = resume, config.runs_dir
            held = _directory(ranks, lambda: RunDirectory.open(find_run(run, runs_dir)))
            on_error.callback(held.close)
        clock = HookClock(config.hook_timeout)
        with clock.watching():
            engine = _prepare(
                config, ranks, model, batch, loss, held, allow_change, clock, on_error
            )
        on_error.pop_all()
    return engine


@memory_named()
def _prepare(
    config: TrainConfig,
    ranks: Ranks,
    model: nn.Module | None,
    batch: Batches | None,
    loss: Loss | None,
    held: RunDirectory | None,
    allow_change: Sequence[str],
    clock: HookClock,
    on_error: ExitStack,
) -> Engine:
    root = Path(config.runs_dir).absolute()  # before others change the working directory
    given = identity_given(model, batch, loss)
    check_alike(config, ranks, given, model, loss)
    if held is not None:
        check_given(held, given, allow_change)
    with nullcontext() if held is None else origin_told(config, held.path):
        built = build(config, ranks, clock, model, batch, loss, given)
    # The model runs here for the first time: one that cannot run leaves no directory behind.
    facts = facts_of(built)
    _check_batches(built)
    if config.activation_checkpointing:
        checkpoint_blocks(built.model, built.quantization)
    if config.compile:
        built.model.compile()
    identity = agreed_identity(run_identity(built), ranks, strict=config.strict)
    if held is None:
        opening = _begin(built, root, facts, on_error)
        engine = _engine(built, opening, facts, identity)
        _write_environment(engine, built)
        _tell_notices(built)
    else:
        going_on = go_on(held, built, identity, allow_change)
        opening = _reopen(built, held, going_on)
        identity["configuration"]["changes"] = list(opening.config.changes)  # for the next resume
        engine = _engine(built, opening, facts, identity)
        _restore(engine, going_on)
    write_configuration(engine.directory, engine.run.config)
    return engine


def _check_batches(built: Built) -> None:
    """Find out now what would cost a run up to its first evaluation, or its first step."""
    check_last_batch(built.workload)
    check_shares(built.workload, built.ranks)
    check_monitor(built.config, built.workload, built.quantization, built.device)


@frozen(eq=False)
class _Opening:
    """Where and how a run begins, or goes on."""

    directory: RunDirectory
    config: TrainConfig
    """With the changes that were accepted."""
    event: tuple[str, Mapping[str, Any]]
    """The first one, and its data."""
    remarks: Sequence[str] = ()


def _begin(built: Built, root: Path, facts: Mapping[str, Any], on_error: ExitStack) -> _Opening:
    """Make the directory of a new run in ``root``."""
    config = built.config.evolve(changes=())
    directory = _directory(built.ranks, partial(RunDirectory.create, config, root))
    on_error.callback(directory.close)
    return _Opening(directory, config, ("start", {"name": directory.path.name, **facts}))


def _reopen(built: Built, directory: RunDirectory, going_on: GoingOn) -> _Opening:
    """Take the directory of a run that goes on from a checkpoint, which all ranks have found."""
    built.ranks.check_same("the checkpoint", going_on.checkpoint.path.name)
    remarks = about_schedule(going_on.planned, going_on.config, going_on.step)
    event = ("resume", going_on.told)
    return _Opening(directory, going_on.config, event, [*remarks, *going_on.remarks])


def _engine(
    built: Built, opening: _Opening, facts: Mapping[str, Any], identity: Mapping[str, Any]
) -> Engine:
    """Put the engine together, at step 0, and log what the user should know."""
    config, ranks, quantization = opening.config, built.ranks, built.quantization
    events = EventLog(opening.directory, built.dispatch)
    run = Run(
        config,
        opening.directory.path,
        built.device,
        built.workload,
        built.model,
        built.optimizer,
        quantization,
        events,
        rank=ranks.rank,
        world_size=ranks.world_size,
        epoch=built.epoch,
    )
    remarks = about_recipe(built.config, quantization)
    remarks += [*about_optimizer(built.optimizer, built.model), *about_unknown(identity)]
    remarks += about_unlike(ranks)
    remarks += [*about_global_hooks(), *about_thread(), *about_warmup(built.config)]
    remarks += opening.remarks
    for remark in remarks if ranks.rank == 0 else ():
        log.warning(remark)
    events.logged |= set(remarks)
    engine = Engine(
        run,
        opening.directory,
        built.dispatch,
        events,
        Detector(config),
        facts,
        [opening.event],
        identity,
        [*remarks, *quantization.missed()],
        initial_weights=None if "model" in built.given else built.weights,
        makers={
            f"the settings of {kind} {name}": built.owners[name]
            for kind, name in (("workload", config.workload), ("optimizer", config.optimizer))
        },
        ranks=ranks,
    )
    ranks.seed(config.seed)
    return engine


def _restore(engine: Engine, going_on: GoingOn) -> None:
    """Put run and record back to where the checkpoint was written."""
    directory = engine.directory
    if directory.is_written:
        if bring_back_environment(directory, going_on.checkpoint.manifest):
            log.warning(f"{ENVIRONMENT} was missing, damaged or changed: it is put back")
        set_aside(directory.checkpoints, going_on.step, directory.run_id)
    altered = directory.cut_logs(going_on.checkpoint.manifest["logs"], going_on.step)
    lost = f"lines were changed or lost before the run went on from step {going_on.step}"
    engine.remarks = [*engine.remarks, *(f"{file}: {lost}" for file in altered)]
    going_on.load_into(engine)
    directory.remove(SUMMARY)
    engine.saving.keep()


def _write_environment(engine: Engine, built: Built) -> None:
    about = {
        RUN_ID: engine.directory.run_id,
        "altcore": engine.identity["platform"]["altcore"],
        **environment(built.device),
        "code": {**code_of(engine.identity), **code_given(given_in(engine.identity))},
        "given": given_in(engine.identity),
        "files": files_of(engine.identity),
        **first_batch(engine.identity),
        "arithmetic": arithmetic(),
        "world_size": engine.ranks.world_size,
        **({INITIAL_WEIGHTS: built.weights} if "model" in built.given else {}),
        **engine.facts,
    }
    engine.directory.write_json(ENVIRONMENT, about)


def _tell_notices(built: Built) -> None:
    """Log the settings that were given and are not used."""
    own = built.workload.facts.get("notice")
    lines = [*notices(built.config.original), *([str(own)] if own else [])]
    for line in lines if built.ranks.rank == 0 else ():
        log.info(line)


def _directory(ranks: Ranks, make: Callable[[], RunDirectory]) -> RunDirectory:
    """Return the run's directory, which rank 0 alone makes and locks."""
    if ranks.rank:
        path, run_id = ranks.gather(("", ""))[0]
        return UnwrittenDirectory(Path(path), None, run_id=run_id)
    made = make()
    ranks.gather((str(made.path), made.run_id))
    return made
