"""A recorded run, back in memory: its model as a checkpoint has it, for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, cast

import torch
from attrs import field, frozen
from torch import nn

from altcore.config import TrainConfig, sources_in
from altcore.engine import (
    Workload,
    build_alone,
    build_workload,
    changed_weights,
    check_weights,
    choose_device,
    data_of,
    digest_of_weights,
    freeze,
    given_data,
    identity_given,
    only_run_autocast,
    plain_modes,
    put_model,
    seeded,
    workload_settings,
)
from altcore.errors import BadInput, InvalidCheckpoint, nearest, shown
from altcore.formats import origins_recorded
from altcore.log import log
from altcore.quantization import Quantization, check_quantization_state
from altcore.registry import find
from altcore.runs import (
    BEST,
    CONFIG,
    LATEST,
    REGULAR,
    RUN_ID,
    WEIGHTS_FILE,
    Change,
    Checkpoint,
    by_merit,
    check_no_linked,
    check_run_id,
    code_of,
    compare,
    configuration_identity,
    data_identity,
    edited,
    find_run,
    given_in,
    identity_in,
    list_checkpoints,
    load_newest,
    other_code,
    plugin_digest,
    read_run,
    run_id_of,
    summary_of,
    warn_of_altered,
    warn_of_missing,
)
from altcore.runs import load_checkpoint as read_checkpoint
from altcore.yaml_files import read_mapping


@frozen
class LoadedRun:
    """A recorded run, as one of its checkpoints has it."""

    model: nn.Module = field(repr=False)
    """Quantized as it was, in evaluation mode."""
    quantization: Quantization = field(repr=False)
    workload: Workload = field(repr=False)
    """Its ``batch`` and ``loss`` evaluate the model, if it was loaded with its data.

    ``loss`` runs in the run's own autocast, if it has one, and in none of the caller's.
    """
    config: TrainConfig = field(repr=False)
    summary: dict[str, Any] = field(repr=False)
    """As summary.json has it; of a run that is not over, what is known so far."""
    checkpoint: Path
    step: int
    """After which the checkpoint was written."""

    def _repr_html_(self) -> str:
        """What a notebook shows: the run, and which checkpoint of it this is."""
        run = read_run(Path(self.summary["directory"]))._repr_html_()
        return f"{run}<div>loaded: {self.checkpoint.name}</div>"


@frozen(eq=False)
class _LoadedWorkload:
    """The workload of a run whose loss is that of the run, whatever autocast the caller is in."""

    own: Workload
    compute: str
    device: torch.device

    def loss(self, model: nn.Module, batch: Any) -> Any:
        """Return what the workload's own loss does."""
        with only_run_autocast(self.compute, self.device):
            return self.own.loss(model, batch)

    def __getattr__(self, name: str) -> Any:
        """Return all else as the workload has it."""
        return getattr(self.own, name)


@plain_modes()
def load(
    run: str | Path,
    checkpoint: str = BEST,
    *,
    runs_dir: str | Path = "runs",
    model: nn.Module | None = None,
    data: Any = None,
    loss: Callable[[nn.Module, Any], Any] | None = None,
    with_data: bool = True,
    device: str = "cpu",
) -> LoadedRun:
    """Load a run's model, quantized as it was; nothing of the run is changed, nor random states.

    If data, loss, the modules of the model or config.yaml are not those of the run, a warning says
    so.

    Args:
        run: its name in ``runs_dir``, or the path of its directory.
        checkpoint: best (by ``monitor``; the latest if nothing was evaluated), latest, or the name
            of one, such as ``step-00000100``.
        runs_dir: the folder of the runs.
        model: built as the one that was given to `altcore.train`, if one was.
        data: likewise; a path, too, if the workload's data are elsewhere now.
        loss: likewise.
        with_data: if False, the model is built without the data where the workload can do so, and
            ``workload`` has no batches.
        device: where the model goes: cpu, auto, cuda or cuda:N.

    Raises:
        BadInput: if there is no such run, or no such checkpoint that is valid.
        InvalidCheckpoint: if the named checkpoint is torn or altered, or of another run or model.
    """
    if not isinstance(run, str | PathLike):
        raise BadInput(f"a run's name or directory is needed, not {shown(run)}", key="run")
    path = directory_of(run, runs_dir)
    warn_of_altered(path)
    if model is None:
        _check_has_model(path)
    written = _config_of(path, runs_dir=str(path.parent), device=device)
    config, batch = given_data(written, data)
    found = _read(path, checkpoint)
    check_run_id(found.path, found.manifest, run_id_of(path))
    where = choose_device(device)
    given = {"model": None, "data": None, "loss": None} | identity_given(model, batch, loss)
    with seeded(config.seed), origins_recorded(config.format_origins):
        alone = None if with_data else build_alone(config, where, model, _facts_in(found))
        with _weights_named(found, config, with_data=with_data):
            workload = alone or build_workload(config, where, model, batch, loss)
        _warn_of_edited(found, written, path)
        _warn_of_changes(found, workload, config, where, given, is_evaluated=alone is None)
        if found.state is None:
            _warn_of_other_weights(found, workload.model)
        freeze(workload.model, config.freeze)
        parts = (config.make_recipe(), config.compute, config.seed)
        quantization = Quantization(workload.model, *parts)
        _take(found, quantization)
    workload.model.eval()
    evaluated = cast(Workload, _LoadedWorkload(workload, config.compute, where))
    built = (workload.model, quantization, evaluated, config)
    return LoadedRun(*built, summary_of(path), found.path, found.step)


def _check_has_model(run: Path) -> None:
    """Raise `BadInput` if a run trained a model that only its caller can build."""
    if given := given_in(identity_in(run)).get("model"):
        problem = f"run {run.name} trained a model of your own, {given['name']}"
        hint = f"pass it: altcore.load({run.name!r}, model=...)"
        raise BadInput(problem, key="model", hint=hint)


def _config_of(run: Path, **instead: str) -> TrainConfig:
    """Return a run's configuration, with other values of some keys; errors name file and line."""
    plain = read_mapping(run / "config.yaml", "run")
    return TrainConfig.from_plain({**plain, **instead}, sources_in(plain))


def _facts_in(found: Checkpoint) -> Mapping[str, Any] | None:
    """Return what a run recorded of its workload; None if its batches came from Python."""
    if "data" in given_in(found.manifest["identity"]):
        return None
    facts = found.manifest["environment"].get("workload_facts")
    return facts if isinstance(facts, Mapping) else None


def _read(run: Path, which: str) -> Checkpoint:
    """Read a checkpoint, and the next one if the run, which trains, removes it meanwhile."""
    path = find_checkpoint(run, which)
    try:
        return read_checkpoint(path)
    except InvalidCheckpoint:
        if which not in (BEST, LATEST) or path.exists():
            raise
        return _read(run, which)


@contextmanager
def _weights_named(found: Checkpoint, config: TrainConfig, *, with_data: bool) -> Iterator[None]:
    """Say in a refusal, as of data that are gone, how to do without them."""
    try:
        yield
    except BadInput as error:
        without = "altcore.load(..., with_data=False) builds the model without its data"
        if not with_data:
            lack = "the record does not say what its own data were, as batches came from Python"
            if _facts_in(found) is not None:
                lack = "it has no build_model"
            without = f"workload {config.workload} cannot build its model without its data: {lack}"
        alone = f"the weights alone are torch.load({str(found.path / WEIGHTS_FILE)!r})['model']"
        hints = [error.hint, without, alone if found.state is not None else ""]
        error.hint = "; ".join(filter(None, hints))
        raise


def _warn_of_edited(found: Checkpoint, config: TrainConfig, run: Path) -> None:
    """Warn if config.yaml has another value than the checkpoint, unless the run says that it has.

    The newest checkpoint was compared with it, but not for settings that are gone from the file.
    Nothing of optimizer and plugins is made, so their settings are not compared.
    """
    if CONFIG in edited(run):
        return
    now = configuration_identity(config, {config.workload: workload_settings(config)})
    before = {key: found.manifest["identity"].get(key) for key in now}
    if not isinstance(before["configuration"], Mapping):
        return
    changes = compare(before, now)
    old, new = (of["configuration"].get("format") for of in (before, now))
    changes += [Change("format", "format", old, new)] * (old != new)
    allowed = [change["what"] for change in config.changes]
    told = [c for c in changes if c.is_decisive and c.what not in allowed]
    if told:
        problem = f"config.yaml is not as the run had it: {'; '.join(map(str, told))}"
        hint = f"altcore runs restore {run.name} brings it back"
        log.warning(problem, checkpoint=str(found.path), hint=hint)


def _warn_of_changes(
    found: Checkpoint,
    workload: Workload,
    config: TrainConfig,
    device: torch.device,
    given: Mapping[str, Any],
    *,
    is_evaluated: bool,
) -> None:
    """Warn if model, data, loss or the code of the workload are not those that the run had.

    ``given`` is what was passed in, None for what is the workload's own. Of a model that is not
    evaluated, data and loss do not matter.
    """
    has_data = given["data"] is not None
    if not is_evaluated:
        given = {"model": given["model"]}
    elif has_data or "data" not in given_in(found.manifest["identity"]):
        _warn_of_other_data(workload, device, found, config, has_data)
    _warn_of_others(found, given)
    if None in given.values():
        _warn_of_other_code(found, config.workload)


def _warn_of_others(found: Checkpoint, now: Mapping[str, Any]) -> None:
    """Warn if another model, or other data or another loss, is passed in than the run had."""
    before = {key: part for key, part in given_in(found.manifest["identity"]).items() if key in now}
    given = {key: part for key, part in now.items() if part is not None}
    for change in compare({"plugin": before}, {"plugin": given}):
        problem = f"{change}: losses are not those of the run"
        hint = f"altcore.load(..., {change.what}=...) takes the run's own"
        log.warning(problem, checkpoint=str(found.path), hint=hint)


def _warn_of_other_code(found: Checkpoint, workload: str) -> None:
    """Warn if the workload, of which model, batches or loss are, has another source by now."""
    entry = find(workload, ("workload",))
    now = {f"workload {workload}": {"from": entry.origin, "sha256": plugin_digest(entry)}}
    codes = other_code([code_of(found.manifest["identity"]), now])
    for before, after in (codes[name] for name in codes if name in now):
        problem = f"workload {workload} was {before} and is {after}"
        hint = "outputs and losses may be others than those of the run"
        log.warning(problem, checkpoint=str(found.path), hint=hint)


def _warn_of_other_data(
    workload: Workload, device: torch.device, found: Checkpoint, config: TrainConfig, is_given: bool
) -> None:
    """Warn if the data are not those that the run had: a loss is then another, too."""
    name, recorded = config.workload, found.manifest["identity"].get("data")
    known_by = data_of(workload, device, is_given)
    identity = found.manifest["identity"]
    of_run = identity.get("configuration", {}).get("settings", {}).get(name, {})
    settings = {name: {**of_run, **config.settings.get(name, {})}}  # with the defaults
    now = data_identity(settings, name, known_by, identity.get("paths", ()))
    for change in compare({"data": recorded}, {"data": now}) if recorded else ():
        # Files of plugins are nothing to a model that is evaluated.
        if change.what == "data" or change.what.startswith(f"{name}."):
            problem = "the data were changed since the run: losses on them are not those of the run"
            about = {"what": change.what, "recorded": change.before, "now": change.now}
            log.warning(problem, checkpoint=str(found.path), **about)


def _warn_of_other_weights(found: Checkpoint, model: nn.Module) -> None:
    """Warn if the seed does not give the weights here that the run began with."""
    for change in changed_weights(found, digest_of_weights(model)):
        problem = f"{change}: these are not the weights that the run began with"
        log.warning(problem, checkpoint=str(found.path))


def _take(found: Checkpoint, q: Quantization) -> None:
    state = found.state
    if state is None:  # step 0: what the seed has built
        return
    try:
        check_weights(state, q.model)
        check_quantization_state(q, state["quantization"], state["model"])
    except BadInput:  # a ValueError, too
        raise
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise InvalidCheckpoint(f"checkpoint {found.path}: {error}") from error
    put_model(q.model, q, state)


def directory_of(run: str | Path, runs_dir: str | Path = "runs") -> Path:
    """Return the directory of a run that is given by name or by path."""
    path = Path(run)
    if len(path.parts) > 1 or path.is_absolute():
        return find_run(path.name, str(path.parent))
    return find_run(str(run), str(runs_dir))


def find_checkpoint(run: Path, which: str) -> Path:
    """Return a checkpoint of a run's directory: ``best``, ``latest``, or by its name.

    Best and latest are never of another run; a warning names one that was copied in, and one that
    the run ended with if it is gone. If none is the best, since no value is finite, the latest is
    taken, with a warning. Raises `BadInput` if there is none.
    """
    folder, run_id = run / "checkpoints", run_id_of(run)

    def check(found: Checkpoint) -> None:
        check_run_id(found.path, found.manifest, run_id)

    if which == BEST:
        if (best := find_best(run)) is None:
            best = load_newest(folder, check).path
            told = f"no checkpoint is known for a finite {_config_of(run).monitor}"
            log.warning(f"{told}: the newest is taken", run=run.name, checkpoint=best.name)
        return best
    check_no_linked(folder)
    names = [kept.path.name for kept in list_checkpoints(folder)]
    if which == LATEST:
        warn_of_missing(run, which)
        return load_newest(folder, check).path
    if which not in names:
        raise BadInput(
            f"run {run.name} has no checkpoint {shown(which)}",
            key="checkpoint",
            meant=nearest(str(which), [BEST, LATEST, *names]),
            hint=f"best, latest, {', '.join(names)}",
        )
    return folder / which


def find_best(run: Path) -> Path | None:
    """Return the best checkpoint of a run's directory; None if no value of any is finite.

    It warns as `find_checkpoint` does.
    """
    folder, run_id = run / "checkpoints", run_id_of(run)
    check_no_linked(folder)
    found = list_checkpoints(folder)
    warn_of_missing(run, BEST)
    config = _config_of(run)
    own = [kept for kept in found if kept.manifest[RUN_ID] == run_id]
    if len(own) < len(found):
        others = [kept.path.name for kept in found if kept not in own]
        log.warning("checkpoints of another run are left out", run=run.name, names=others)
    regular = [kept for kept in own if kept.kind == REGULAR]
    evaluated = [kept for kept in regular if kept.manifest["evaluation"]]
    best = by_merit(evaluated, config.monitor, config.direction)
    return best[0].path if best else None
