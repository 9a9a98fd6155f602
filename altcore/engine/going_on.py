"""Going on with a run: its newest valid checkpoint, if this is the run that wrote it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from altcore.config import TrainConfig
from altcore.engine.apply import take_recipe
from altcore.engine.building import Built
from altcore.engine.changed_formats import identities, take_new_values, usable_snapshots
from altcore.engine.identity import changed_weights
from altcore.engine.labels import MODEL, parameter_names
from altcore.engine.loop import Engine
from altcore.engine.optimizer_checks import layout_of
from altcore.engine.plugin_states import RefusedState, check_plugin_states
from altcore.engine.plugins import Plugin
from altcore.engine.schedule import learning_rate
from altcore.engine.state_checks import (
    check_state,
    check_tensors,
    check_ties,
    check_weights_and_moments,
)
from altcore.errors import BadInput, InvalidCheckpoint, UnfitState
from altcore.log import log
from altcore.recipes import some
from altcore.runs import (
    ANOMALY,
    CONFIG,
    DECIDES,
    ENDED_PHASE,
    NAME,
    NOTED,
    Change,
    Checkpoint,
    RunDirectory,
    about_platform,
    check_changes,
    check_environment,
    check_run_id,
    compare,
    find_end,
    given_in,
    has_environment,
    has_lost_lines,
    has_record_of,
    has_summary,
    identity_in,
    is_edited,
    load_if_valid,
    load_newest,
    lost_since,
    read_configuration,
    restorable,
    tidy,
)

FORMS = ("altcore", "torch", "python", "torch's default dtype")
"""Parts of the platform that decide the form of a state."""


def check_given(directory: RunDirectory, given: Mapping[str, Any], allowed: Sequence[str]) -> None:
    """Raise `BadInput` if the caller gave another model or loss, or other data than the run had.

    Only names are compared, before anything is built: what is missing would fail on the way. A run
    that has no checkpoint is refused for that, since nothing tells what it was given.
    """
    directory.check_begun()
    name = directory.path.name
    before = given_in(identity_in(directory.path))
    old, new = ({k: {NAME: v.get(NAME)} for k, v in x.items()} for x in (before, given))
    changes = compare({"plugin": old}, {"plugin": new})
    refused = [c for c in changes if not c.is_among(allowed)]
    for change in refused:
        if change.now is None:
            named, it = ("data", "them") if change.what == "data" else (f"a {change.what}", "it")
            raise BadInput(
                f"it trained {named} of your own, {change.text_before}",
                key=f"--resume {name}",
                hint=f"pass {it} again: altcore.train(resume={name!r}, {change.what}=...)",
            )
    check_changes(refused, name)


@frozen(eq=False)
class GoingOn:
    """The checkpoint from which a run goes on, and what is different since."""

    checkpoint: Checkpoint
    config: TrainConfig
    """With the changes that were accepted."""
    planned: int | None
    """The steps that the run was to make."""
    changes: Sequence[Change]
    of_run: Sequence[Change]
    """Of its length and its logs: these need not be allowed."""
    left: Path | None
    """The anomaly with which the run ended, if it is to go on from before it."""
    lost: Path | None
    """The newest checkpoint that the run wrote, if it is a later one and is gone."""
    edited: str
    """What is said of another length in config.yaml, if it has one."""

    @property
    def step(self) -> int:
        """The step after which the checkpoint was written."""
        return self.checkpoint.step

    @property
    def told(self) -> dict[str, Any]:
        """The data of the event ``resume``."""
        changes = [c.to_plain() for c in (*self.changes, *self.of_run)]
        return {
            "checkpoint": self.checkpoint.path.name,
            **({"changes": changes} if changes else {}),
        }

    @property
    def remarks(self) -> list[str]:
        """Warnings for the user."""
        accepted = [c for c in self.changes if c.is_decisive]
        told = f"it is not the run that it was, as you allowed: {'; '.join(map(str, accepted))}"
        remarks = [told] * bool(accepted) + [self.edited] * bool(self.edited)
        if self.left:
            not_finite = f"it ended as {self.left.name}, whose weights are not finite"
            remarks.append(f"{not_finite}, and goes on from before")
        if self.lost:
            gone = f"checkpoint {self.lost.name}, the newest that the run wrote, is missing"
            remarks.append(f"{gone}: the run goes on from step {self.step}")
        return [*remarks, *about_platform(self.changes)]

    def load_into(self, engine: Engine) -> None:
        """Restore the state; what was allowed to change is as it is now."""
        run = engine.run
        options = [
            {k: v for k, v in group.items() if k != "params"}
            for group in run.optimizer.param_groups
        ]
        engine.resume(self._as_it_goes_on(run.config))
        if self.checkpoint.state is None:  # all was built as it is to be
            return
        accepted = [c for c in self.changes if c.is_decisive]
        if any(_is_of_optimizer(c, run.config) for c in accepted):
            snapshots = [snapshot.optimizer["param_groups"] for snapshot in run.snapshots]
            for groups in (run.optimizer.param_groups, *snapshots):
                for group, own in zip(groups, options, strict=True):
                    group.update(own)
        if any(c.kind in ("format", "recipe") for c in accepted):
            engine.openings.append(("recipe", take_recipe(run, "--allow-change")))
            engine.start_anew()

    def _as_it_goes_on(self, config: TrainConfig) -> Checkpoint:
        """Return the checkpoint without the snapshots that cannot be used.

        Those of another optimizer, or of other settings of it, are to be written anew.
        """
        manifest = self.checkpoint.manifest
        if any(_is_of_optimizer(c, config) for c in self.changes):
            manifest = {**manifest, "snapshots": []}
        usable = usable_snapshots(self.checkpoint)
        return evolve(self.checkpoint, snapshots=usable, manifest=manifest)


def _is_of_optimizer(change: Change, config: TrainConfig) -> bool:
    return change.what == "optimizer" or change.what.startswith(f"{config.optimizer}.")


def go_on(
    directory: RunDirectory, built: Built, identity: Mapping[str, Any], allowed: Sequence[str]
) -> GoingOn:
    """Return the newest valid checkpoint of a run; what the dead left half written is removed.

    Raises `BadInput` if the run has nothing left to do, not even to write a summary that is lost,
    or is another one than it was and ``allowed`` does not name the change.
    """
    config = built.config
    changes: list[Change] = []
    unfit: list[InvalidCheckpoint] = []

    def check_own_model(found: Checkpoint) -> None:
        if "model" in built.given:
            _check_own_model(found, built, directory.path.name, changes)

    def check(found: Checkpoint, plugins: Sequence[Plugin]) -> None:
        check_run_id(found.path, found.manifest, directory.run_id)
        changes[:] = compare(*identities(found, identity))
        changes.extend(changed_weights(found, built.weights, changes))
        name = directory.path.name
        try:
            edited = partial(is_edited, directory.path)
            check_changes(changes, name, allowed=allowed, strict=config.strict, is_edited=edited)
        except BadInput as error:
            _check_record(found, directory.path, error)
            check_own_model(found)  # other tensors nobody can allow
            error.hint += _allowed_before(changes, config, found.step)
            raise
        if any(c.what == "optimizer" for c in changes):
            _without_moments(found, built)
        check_own_model(found)
        try:
            if found.state is not None:
                take_new_values(found.state, built.quantization)
                check_state(found.state, built, is_healthy=found.kind != ANOMALY)
                check_plugin_states(found.state, plugins)
            for snapshot in usable_snapshots(found):
                forms = (found.state or {}).get("buffer_forms", {})
                state = {**snapshot, "model": snapshot.get("weights"), "buffer_forms": forms}
                check_weights_and_moments(state, built)
        except InvalidCheckpoint as error:
            causes = [str(c) for c in changes if c.is_decisive or c.what in FORMS]
            if not causes:
                unfit.append(error)
                raise UnfitState(str(error)) from error
            # An earlier checkpoint would fit no better, until all that was trained is lost.
            problem = f"what changed does not fit the state of {found.path.name}: {error}"
            hint = "; ".join(causes)
            raise BadInput(problem, key=f"--resume {name}", hint=hint) from error

    if directory.is_written:
        tidy(directory.checkpoints)
    check_environment(directory.path)
    found = _end_of(directory, built, check) or _newest(directory, built, check, unfit)
    before = found.manifest["identity"]["configuration"]
    planned = before["max_steps"]
    is_over = found.manifest["phase"] == ENDED_PHASE
    is_whole = has_summary(directory.path) and has_environment(directory.path)
    is_done = found.step == config.max_steps and is_over and is_whole
    edited = _edited_length(directory.path, before, config)
    if found.step > config.max_steps or is_done:
        problem = _nothing_left(directory.path.name, found.step, config.max_steps, is_over)
        raise BadInput(problem, hint=edited)
    own = [*_changed_length(planned, config, found.step), *_changed_record(directory.path, found)]
    decisive = [c for c in (*changes, *own) if c.is_decisive]
    accepted = [{"step": found.step, **c.to_plain()} for c in decisive]
    # The earlier ones as the checkpoint has them: whoever edits config.yaml changes no history.
    config = config.evolve(changes=(*before["changes"], *accepted))
    left = find_end(directory.checkpoints, directory.run_id, found.step + 1)
    lost = lost_since(directory.path, found.step)
    return GoingOn(found, config, planned, changes, own, left, lost, edited)


def _changed_record(run: Path, found: Checkpoint) -> list[Change]:
    """Return the logs that cannot be put back as they were: who reads the summary is told."""
    logs = {Path(file).name: held for file, held in found.manifest["logs"].items()}
    was, is_now = "as the run left it", "changed, or without some lines"
    others = [n for n, held in logs.items() if has_lost_lines(run / n, held, found.step)]
    return [Change("record", name, was, is_now) for name in others]


def _changed_length(planned: int | None, config: TrainConfig, step: int) -> list[Change]:
    """Return the change of the steps that a run is to make, if it has one.

    It decides numbers if the schedule would have had other rates up to ``step``: then nobody
    repeats the run by its configuration.
    """
    if planned in (None, config.max_steps):
        return []
    other = config.evolve(max_steps=planned)
    steps = range(1, step + 1)
    is_other = any(learning_rate(config, s) != learning_rate(other, s) for s in steps)
    severity = DECIDES if is_other else NOTED
    return [Change("configuration", "max_steps", planned, config.max_steps, severity)]


Check = Callable[[Checkpoint, Sequence[Plugin]], None]


def _end_of(directory: RunDirectory, built: Built, check: Check) -> Checkpoint | None:
    """Return the anomaly with which the run ended, unless it has steps left to make.

    Those are made from the last checkpoint whose weights are finite.
    """
    path = find_end(directory.checkpoints, directory.run_id, built.config.max_steps)
    if path is None:
        return None
    try:
        return load_if_valid(path, lambda found: check(found, built.plugins))
    except UnfitState as error:
        log.warning("the end of the run is left out", checkpoint=path.name, error=str(error))
        return None


def _newest(
    directory: RunDirectory, built: Built, check: Check, unfit: list[InvalidCheckpoint]
) -> Checkpoint:
    """Return the newest valid checkpoint.

    States that do not fit (``unfit``, which ``check`` fills) are no reason to begin again from the
    seed alone: their files are whole, so it is what was built that is wrong. If an observer refuses
    that of every checkpoint, it is the observer that is broken: the boundary disables it.
    """

    def find(plugins: Sequence[Plugin]) -> Checkpoint:
        def check_all(found: Checkpoint) -> None:
            if found.state is None and unfit:
                problem = "it has no state, and the run is not to lose what it has made"
                raise UnfitState(problem)
            check(found, plugins)

        unfit.clear()
        return load_newest(directory.checkpoints, check_all)

    try:
        return find(built.plugins)
    except BadInput as error:
        refused = [e for e in unfit if isinstance(e, RefusedState)]
        acting = [r for r in refused if r.plugin.acts or built.config.strict]
        if refused and not acting:
            return find([p for p in built.plugins if p.acts])
        if not unfit:
            directory.check_begun()
            raise
        cause = acting[0] if acting else unfit[0]
        name = directory.path.name
        mend = "mend the plugin" if acting else "go on with the code that wrote them"
        hint = f"its checkpoints stay as they are: {mend}, or train anew under a --name"
        problem = f"no checkpoint has a state that it can go on with: {cause}"
        raise BadInput(problem, key=f"--resume {name}", hint=hint) from error


def _nothing_left(name: str, made: int, asked: int, is_over: bool) -> str:
    """Return why a run does not go on to a step."""
    where = f"the run is at step {made} of {asked}"
    if made > asked:
        where = f"the run has made {made} steps, and {asked} are asked for in all"
    finished = " is finished" if is_over else ""
    then = "give --steps or --set epochs=... a larger number to go on"
    return f"--resume {name}{finished}: {where}; {then}"


def _edited_length(run: Path, before: Mapping[str, Any], config: TrainConfig) -> str:
    """Say that a run's config.yaml, not the command line, asks for another length than it had."""
    written = read_configuration(run)
    for key in ("max_steps", "epochs"):
        if before.get(key) != written.get(key) == getattr(config, key):
            there = f"{run / CONFIG} has {key} {written[key]}, and the run had {before.get(key)}"
            return f"{there}: altcore runs restore {run.name} brings it back"
    return ""


def _check_record(found: Checkpoint, run: Path, error: BadInput) -> None:
    """Raise `InvalidCheckpoint` for what is refused, if a copy of the run wrote the checkpoint.

    It has the run's id, and another checkpoint has its record and what it was. One that was what
    this one was would be refused, too: then it is the record that was changed.
    """
    own, manifest = restorable(run)
    if own == found.path or has_record_of(run, found.manifest):
        return
    parted = compare(manifest["identity"], found.manifest["identity"])
    if any(change.is_decisive for change in parted):
        problem = f"checkpoint {found.path} is of a copy of this run, which has another record"
        raise InvalidCheckpoint(f"{problem}: {error}") from error


def _allowed_before(changes: Sequence[Change], config: TrainConfig, step: int) -> str:
    """Say which changes were allowed when the run went on from the same step before.

    They are in its config.yaml, and in no checkpoint: it was killed before it wrote the next one.
    """
    again = [c.what for c in changes if {"step": step, **c.to_plain()} in config.changes]
    if not again:
        return ""
    return f" ({some(again)}: allowed before, and no checkpoint was written with it since)"


def _check_own_model(found: Checkpoint, built: Built, name: str, changes: Sequence[Change]) -> None:
    """Raise `BadInput` if the model passed in has other parameters than the one that was trained.

    An earlier checkpoint would fit no better: its file is as it was written.
    """
    if isinstance((found.state or {}).get("model"), Mapping):
        try:
            check_tensors(found.state or {}, built.model)
            check_ties(found.state or {}, built.model, built.optimizer)
        except InvalidCheckpoint as error:
            problem = f"the model passed in is not the one that was trained: {error}"
            hint = "; ".join(str(c) for c in changes if c.what in FORMS)
            raise BadInput(problem, key=f"--resume {name}", hint=hint) from error


def _without_moments(found: Checkpoint, built: Built) -> None:
    """Let a state and its snapshots have the state of the new optimizer, which has none yet."""
    fresh = built.optimizer.state_dict()
    layout = layout_of(fresh, built.optimizer, parameter_names({MODEL: built.model}))
    for state in (found.state, *found.snapshots):
        if isinstance(state, dict):
            state["optimizer"] = fresh
            if state is found.state:
                state["optimizer_layout"] = layout
            if isinstance(state.get("quantization"), dict):
                state["quantization"]["moments"] = {}
