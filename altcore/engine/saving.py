"""When a run writes a checkpoint, and what the checkpoint says of itself."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from attrs import asdict, define, field
from torch import Tensor

from altcore.engine.called_state import untrained, variables_in, variables_of_methods
from altcore.engine.custom_workload import own_batches, own_loss, own_workload
from altcore.engine.ending import Ending
from altcore.engine.fingerprints import Fingerprint
from altcore.engine.finite import is_finite
from altcore.engine.given_parts import without_changing, without_saved
from altcore.engine.hidden_state import attributes_of_others, changed_in, no_state, own_of
from altcore.engine.hook_state import Hooks
from altcore.engine.model_state import misstated
from altcore.engine.optimizer_loading import misstated_moment
from altcore.engine.rescue import check_place
from altcore.engine.run_state import RunState
from altcore.engine.state import Run
from altcore.engine.state_checks import check_weights_and_moments
from altcore.engine.state_tensors import named_tensors
from altcore.engine.weights import WeightCheck
from altcore.errors import AltcoreError, InvalidCheckpoint
from altcore.hooks import NonFinite
from altcore.recipes import some
from altcore.runs import (
    ANOMALY,
    ENDED,
    ENDED_PHASE,
    INITIAL_WEIGHTS,
    REGULAR,
    RUN_ID,
    TRAINED,
    TRAINING,
    Checkpoint,
    RunDirectory,
    folder_of,
    is_checkpoint,
    named_files,
    retain,
    save_checkpoint,
    save_snapshot,
    stamps,
    stamps_of_files,
    update_manifest,
)

UNSAVED = (
    "state of the run that no checkpoint has, and that a run that goes on begins anew. Keep it in "
    "buffers, the optimizer's state or a plugin's state_dict, or set it again in run_start"
)
"""Said of attributes."""


@define(eq=False)
class Saving:
    """Writes the checkpoints of one run."""

    state: RunState
    directory: RunDirectory
    ending: Ending
    weights: WeightCheck
    identity: Mapping[str, Any]
    """What the run is, for the manifests."""
    initial_weights: str | None
    """The digest of the weights, if the seed alone gives the state at step 0."""
    makers: Mapping[str, Any]
    """The settings of the workload and the optimizer, which built them."""
    saved: tuple[Any, ...] = field(init=False, default=())
    """What the last checkpoint knew: nothing is written twice."""
    place: str = field(init=False, default="")
    """The last folder that was told of; the event comes once."""
    looked: tuple[Any, ...] = field(init=False, default=())
    """The step after which the weights were last read, and whether they were finite."""
    snapshots: dict[int, dict[str, Any]] = field(init=False, factory=dict)
    """The snapshots that are on disk, by step, as manifests refer to them."""
    is_checked: bool = field(init=False, default=False)
    """Whether a state after a step was checked as a resume would check it."""
    hooks: Hooks = field(init=False)
    """The hooks on the model and the optimizer when the run started, those of plugins, too."""
    attributes: Mapping[str, Fingerprint] = field(init=False, factory=dict)
    """Those in which interventions, the workload and functions that were given may hide state, when
    the run started."""
    kept: Set[str] = field(init=False, factory=frozenset)
    """The checkpoints that were there after the last one was written."""
    data: Mapping[str, Any] = field(init=False)
    """What the workload's files were known by when the run was built."""

    def __attrs_post_init__(self) -> None:
        self.hooks = self.state.built.hooks
        workload, surely = self.state.run.config.workload, self.identity.get("paths", ())
        given = self.identity.get("configuration", {}).get("settings", {}).get(workload, {})
        self.data = stamps_of_files(named_files({workload: given}, surely))

    def note_start(self) -> None:
        """Note what run_start has made of model and plugins: it does so again in a resume."""
        built, plugins = self.state.built, [p.instance for p in self.state.dispatch.plugins]
        self.hooks = Hooks(built.modules, built.optimizers, plugins)
        self.attributes = self._attributes()

    def _attributes(self) -> dict[str, Fingerprint]:
        dispatch, run = self.state.dispatch, self.state.run
        heard = [p for p in dispatch.plugins if p.name in dispatch.heard]
        owners = {f"{p.kind} {p.name}": p.instance for p in heard}
        own = own_of([*run.model.modules(), run.optimizer])
        workload = {"the workload": own_workload(run.workload)}
        given = {
            "the function data": own_batches(run.workload),
            "the function loss": own_loss(run.workload),
        }
        acting = owners | dict(self.makers)
        return {
            **attributes_of_others(acting, own),
            **variables_of_methods(acting.values(), own),
            # It seeds its generators anew for each batch.
            **attributes_of_others(workload, own, with_generators=False),
            **variables_of_methods(workload.values(), own, with_generators=False),
            **variables_in(given, own),
        }

    def check_data(self) -> None:
        """Raise `AltcoreError` if a file of the workload is not what it was: nothing is saved."""
        now = stamps(self.data)
        changed = [file for file, stamp in self.data.items() if now[file] != stamp]
        if changed:
            then = "put them back, and --resume goes on from the last checkpoint"
            raise AltcoreError(f"data changed while the run trained: {', '.join(changed)}: {then}")

    @property
    def phase(self) -> str:
        """Whether steps are left."""
        run, is_running = self.state.run, self.ending.status == "running"
        return TRAINING if is_running and run.step < run.config.max_steps else TRAINED

    def save(self) -> None:
        """Write a checkpoint of the run as it is now, unless there is one.

        If the weights are not finite it is no point to go on from: the first such state is kept as
        an anomaly, and the one that the run ends in, from which it can end again.
        """
        self.state.record.flush()
        self.check_data()
        self.check_place()
        self._save()

    def check_place(self) -> None:
        """End a run that lost its directory; only between two steps, since it is saved."""
        check_place(self.directory, self.state.run, self._save_elsewhere)

    def _save_elsewhere(self) -> None:
        self.saved, self.place, self.snapshots, self.kept = (), "", {}, frozenset()
        self._save()

    def _save(self) -> None:
        run = self.state.run
        if self.saved == self._known():
            return
        self.weights.check_in_place()
        self.state.built.check()
        kind = REGULAR if self.has_finite_weights() else ANOMALY
        if kind == ANOMALY and self.phase == TRAINING:
            return
        self._tell(kind)
        self._warn_of_moments()
        self._warn_of_unsaved()
        self._warn_of_lost()
        if run.step == 0:  # a plugin whose state cannot be kept is told before the first step
            self.state.dispatch.state_dict(run)
        is_needed = run.step > 0 or not self.initial_weights or run.degraded or run.world_size > 1
        self._write(kind, self._checked(kind) if is_needed else None, self.phase)
        self.saved = self._known()
        self.keep()

    def _checked(self, kind: str) -> dict[str, Any]:
        """Return the state; the first ones are checked as a resume would check it."""
        run, state = self.state.run, self.state.state_dict()
        if wrong := (
            misstated(run.model, state["model"])
            or misstated_moment(run.optimizer, state["optimizer"])
        ):
            raise AltcoreError(f"{wrong}: no checkpoint would give it back")
        if kind == REGULAR and not self.is_checked:
            try:
                check_weights_and_moments(state, run)
            except InvalidCheckpoint as error:
                raise AltcoreError(f"no run could go on from its checkpoints: {error}") from error
            self.is_checked = run.step > 0
        return state

    def _warn_of_unsaved(self) -> None:
        """Warn, once, of what changes the run and is in no checkpoint of it."""
        run = self.state.run
        hidden = [*self.state.built.hidden(), *self.hooks.changed()]
        hidden += changed_in(self.attributes, self._attributes())
        self.identity = without_changing(self.identity, hidden)
        how = no_state(hidden)
        told = [f"{some(hidden)}: {UNSAVED}{f'. {how}' if how else ''}"] if hidden else []
        if late := self.hooks.late():
            told.append(
                f"hooks were put on {some(late)} while the run trained, and no checkpoint has "
                "them: a run that goes on is without, unless they are put there in run_start"
            )
        if idle := untrained(own_loss(run.workload), run.model, run.optimizer):
            told.append(
                f"{some(idle)} of the function loss: no optimizer trains it. Make it a part of the "
                "model, or let it need no gradients"
            )
        if thawed := self.weights.thawed(run.optimizer):
            told.append(
                f"{some(thawed)}: trained by no optimizer, which took what needed gradients when "
                "the run was built. Let it need gradients then, and freeze it later"
            )
        for message in filter(run.quantization.context.is_news, told):
            run.emit("warning", message=message, cause="unsaved")

    def _warn_of_lost(self) -> None:
        """Warn of checkpoints that somebody removed; the next one is written all the same."""
        if lost := sorted(self.kept - self._on_disk()):
            message = f"checkpoints of the run are gone ({some(lost)}): something removed them"
            self.state.run.emit("warning", message=message, cause="checkpoints")
            self.snapshots = {}  # they may be gone as well: all are written anew

    def _on_disk(self) -> set[str]:
        folder = self.directory.checkpoints
        return {p.name for p in folder.iterdir() if is_checkpoint(p)} if folder.is_dir() else set()

    def _warn_of_moments(self) -> None:
        """Warn, once until it clears, of an optimizer's state that is not finite as weights are.

        A large finite gradient is enough: its square overflows, and the weight moves no more.
        """
        run, history = self.state.run, self.state.history
        bad, was = _bad_moment(run), history.has_bad_moments
        history.has_bad_moments = bad is not None
        if bad is not None and not was:
            message = f"{bad} of the optimizer is not finite: that weight may move no more"
            run.emit("warning", message=message, cause="moments")

    def _tell(self, kind: str) -> None:
        place = folder_of(kind, self.state.run.step)
        if place != self.place:
            self.state.run.emit("checkpoint", path=f"checkpoints/{place}")
            self.place = place

    def keep(self) -> None:
        """Set the pointers, and remove the checkpoints that need not stay."""
        if not self.directory.is_written:
            return
        config = self.state.run.config
        retain(
            self.directory.checkpoints,
            monitor=config.monitor,
            mode=config.direction,
            max_checkpoints=config.max_checkpoints,
            keep_best=config.keep_best,
        )
        self.kept = self._on_disk()

    def has_finite_weights(self) -> bool:
        """Read at once whether the weights are; if not, tell it and keep them as an anomaly."""
        run = self.state.run
        if self.looked[:1] != (run.step,):
            is_new = self.weights.since is None  # else this step has told it
            bad = self.weights.judge(float(self.weights.norm()), run.step)
            self.looked = (run.step, bad is None)
            if bad is not None and is_new:
                self.tell_nonfinite(bad)
        return bool(self.looked[1])

    def tell_nonfinite(self, where: NonFinite) -> None:
        """Record what was not finite, and keep the state of the first such step."""
        consecutive = self.state.detector.nonfinite + 1
        self.state.run.emit("nan", **asdict(where), consecutive=consecutive)
        self.save_anomaly()

    def save_anomaly(self) -> None:
        """Keep the state of the first step that was not finite, for people to look at."""
        history = self.state.history
        if history.has_anomaly:
            return
        history.has_anomaly = True
        self._tell(ANOMALY)
        self._write(ANOMALY, self.state.state_dict(), TRAINING)

    def seal(self) -> None:
        """Note in the last checkpoint that the run has ended: nothing of it is left to do."""
        run = self.state.run
        path = self.directory.checkpoints / self.place
        if not self.directory.is_written:
            return
        if self.ending.status in ENDED and self.saved[:1] == (run.step,) and path.is_dir():
            update_manifest(path, phase=ENDED_PHASE, logs=self.directory.sync_logs())

    def resume(self, checkpoint: Checkpoint) -> None:
        """Take the state of a checkpoint; one of a run that had ended is to go on.

        If no step is left it is only to end once more, as it did.
        """
        run, history = self.state.run, self.state.history
        if checkpoint.state is not None:
            self.state.load_state_dict(checkpoint.state, checkpoint.snapshots)
        known = {snapshot.step for snapshot in run.snapshots}
        listed = checkpoint.manifest["snapshots"]
        self.snapshots = {entry["step"]: entry for entry in listed if entry["step"] in known}
        is_over = checkpoint.manifest["phase"] == ENDED_PHASE
        if is_over and run.step < run.config.max_steps:
            history.stop, history.status = {}, "running"
        elif history.status == "finished":
            history.status = "running"  # there may be more steps now
        self.saved, self.place = self._known(), checkpoint.path.name
        if checkpoint.kind == ANOMALY:
            self.looked = (run.step, False)  # which the record tells

    def _known(self) -> tuple[Any, ...]:
        run = self.state.run
        return run.step, self.phase, self._evaluation() is not None

    def _evaluation(self) -> dict[str, Any] | None:
        """Return the evaluation of this step, if there is one."""
        last = self.state.history.evaluation
        return last if last.get("step") == self.state.run.step else None

    def _write(self, kind: str, state: Mapping[str, Any] | None, phase: str) -> None:
        run = self.state.run
        if not self.directory.is_written:
            return
        manifest = {
            "kind": kind,
            RUN_ID: self.directory.run_id,
            "step": run.step,
            "phase": phase,
            "evaluation": self._evaluation(),
            "snapshots": self._write_snapshots() if kind == REGULAR else [],
            "logs": self.directory.sync_logs(),
            "identity": without_saved(self.identity, (state or {}).get("buffers", ())),
            "environment": self.directory.environment,
            **({INITIAL_WEIGHTS: self.initial_weights} if state is None else {}),
        }
        save_checkpoint(self.directory.checkpoints, state, manifest)

    def _write_snapshots(self) -> list[dict[str, Any]]:
        """Write the snapshots that are not on disk yet; returns what refers to each."""
        known, folder = self.snapshots, self.directory.checkpoints
        self.snapshots = {
            s.step: known.get(s.step) or save_snapshot(folder, asdict(s, recurse=False))
            for s in self.state.run.snapshots
        }
        return list(self.snapshots.values())


def _bad_moment(run: Run) -> str | None:
    """Return the name of the first state of a weight that is not finite, None if all are."""
    names: dict[Tensor, str] = {p: name for name, p in run.model.named_parameters()}
    for p, state in run.optimizer.state.items():
        for key, value in named_tensors(state):
            if not is_finite(value):
                return f"{key} of {names.get(p, 'a parameter')}"
    return None
