"""The training loop. It alone acts; it emits events and obeys actions.

    run_start
    each step:
      each micro-batch, within watch_backward:
        step.loss = workload loss, within watch_forward; pre_backward;
        (loss × loss_scale × the micro-batch's share of the step's items).backward()
        (under DDP the gradients are reduced inside backward)
      unscale; post_backward; pre_step; the engine's own grad_clip
      the step's one host read; if not finite: on_nan; arbitrate
      unless discarded: optimizer.step(), stored weights and optimizer state back on their grids,
        post_step; if discarded: the model's buffers as they were before the step
      detect: on_collapse; arbitrate; apply the verdict
      record: on_record; evaluate: on_eval; checkpoint
    run_end, always, on errors and interrupts too

is_due is asked once as a step begins. The one host read also fetches the measures that the step
before made after its optimizer. So on_record of a step comes with the following step, or at once
when the engine waits for the device anyway: before on_collapse, an evaluation or a checkpoint, and
at the end. Interventions, which may act on it, get it as the second step after it begins: those of
the last two steps if the run goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from attrs import define, field
from torch import Tensor, nn

from altcore.engine import capture
from altcore.engine.apply import carry_out, emit_verdict, stop_of
from altcore.engine.changed_process import changes_named
from altcore.engine.checked_workload import training_batches
from altcore.engine.collapse import Detector
from altcore.engine.compiling import tell_recompiles
from altcore.engine.dispatch import Dispatcher
from altcore.engine.ending import Ending
from altcore.engine.evaluating import Evaluating
from altcore.engine.evaluation import items_in
from altcore.engine.event_log import EventLog
from altcore.engine.flag_watch import watched
from altcore.engine.gradients import GradientNorms
from altcore.engine.history import RunHistory
from altcore.engine.leaving import Leaving
from altcore.engine.losses import loss_and_measures, who_is
from altcore.engine.memory import memory_named
from altcore.engine.modes import Modes
from altcore.engine.nonfinite import layer_evidence, locate_nonfinite
from altcore.engine.randomness import random_state, set_random_state
from altcore.engine.ranks import Ranks
from altcore.engine.restarting import as_restored
from altcore.engine.run_state import RunState
from altcore.engine.saving import Saving
from altcore.engine.schedule import is_due, learning_rate
from altcore.engine.snapshots import Snapshot
from altcore.engine.stall import judged_stall, lost_stall_rate
from altcore.engine.state import Run, Step
from altcore.engine.step_record import StepRecord
from altcore.engine.unasked import tell_changed_rates
from altcore.engine.weights import WeightCheck
from altcore.hooks import BEFORE_OPTIMIZER, Proposal, Rollback, SkipStep, Stop, Verdict, arbitrate
from altcore.runs import Checkpoint, RunDirectory


@define(eq=False)
class Engine:
    """Trains one run to its end. Built by `altcore.engine.setup.prepare`."""

    run: Run
    directory: RunDirectory
    dispatch: Dispatcher
    events: EventLog
    detector: Detector
    facts: Mapping[str, Any]
    """Repeated in the summary: shares quantized, and the workload's facts."""
    openings: list[tuple[str, Mapping[str, Any]]]
    """The first events, and their data."""
    identity: Mapping[str, Any]
    """What the run is known by; each checkpoint has it."""
    remarks: Sequence[str] = ()
    """Warnings told when the run starts."""
    initial_weights: str | None = None
    """The digest of those that the seed alone gives; None if a model was passed in."""
    makers: Mapping[str, Any] = field(factory=dict)
    """The settings of the workload and the optimizer, which built them."""
    ranks: Ranks = field(factory=Ranks)
    is_restored: bool = field(init=False, default=False)
    """Whether the state came from a checkpoint."""
    leaving: Leaving = field(init=False)
    history: RunHistory = field(init=False, factory=RunHistory)
    record: StepRecord = field(init=False)
    gradients: GradientNorms = field(init=False)
    captures: capture.LayerCaptures = field(init=False)
    modes: Modes = field(init=False)
    needs: set[str] = field(init=False, factory=set)
    """The captures that plugins due on this step need."""
    ending: Ending = field(init=False)
    weights: WeightCheck = field(init=False)
    saving: Saving = field(init=False)
    evaluating: Evaluating = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.record = StepRecord(self.run, self.directory, self.dispatch, self.history)
        told = (self.dispatch, self.history, self.record, self.facts, self.ranks)
        self.ending = Ending(self.run, self.directory, *told)
        updated = [p for group in self.run.optimizer.param_groups for p in group["params"]]
        threshold = self.run.config.dead_neuron_threshold
        self.gradients = GradientNorms(self.run.model, threshold, updated)
        self.captures = capture.LayerCaptures(self.run.quantization.modules)
        self.weights = WeightCheck(self.run.model)
        parts = (self.dispatch, self.detector, self.history, self.record, self.gradients)
        state = RunState(self.run, *parts, self.ranks)
        self.modes = state.modes
        about = (self.weights, self.identity, self.initial_weights, self.makers)
        self.saving = Saving(state, self.directory, self.ending, *about)
        self.leaving = Leaving(self.ranks.world_size == 1)
        self.dispatch.boundary.note_harm = self.directory.note_harm
        self.evaluating = Evaluating(state, self.directory, self.saving, self.leaving)

    def train_step(self, step: Step) -> None:
        """Draw a batch, learn from it, judge, record: the docstring above, in code."""
        run, config = self.run, self.run.config
        dispatch = self.dispatch
        actions, measures, watching = dispatch.actions, dispatch.measures, dispatch.watching
        self.begin(step)
        proposals: list[Proposal] = []
        losses: list[dict[str, Tensor]] = []
        count = config.gradient_accumulation_steps
        batches = training_batches(run.workload, run.epoch, step.index, count)
        step.items = tuple(items_in(run.workload, batch) for batch in batches)
        for step.micro, batch in enumerate(batches):
            step.batch = self.ranks.share(run.workload, batch)
            with watching("watch_backward", run, step):
                with run.autocast(), watching("watch_forward", run, step):
                    step.loss, told = loss_and_measures(run.workload, run.model, step.batch, losses)
                proposals += actions("pre_backward", run=run, step=step)
                loss = step.loss * (step.loss_scale / (sum(step.items) / step.items[step.micro]))
                with watched("the model", "its backward pass"):
                    self.ranks.backward(loss, is_last=step.micro + 1 == len(batches))
            losses.append({"loss": step.loss.detach(), **told})
        means = self.ranks.average(losses, step.items, run.quantization)
        step.mean_loss = means["loss"]
        self.unscale(step)
        seen = measures("post_backward", run=run, step=step)
        proposals += actions("pre_step", run=run, step=step)
        final_norm = self.clip(step)

        said = (len(proposals), self.leaving.signals.asked, final_norm)
        agreed = self.ranks.agree(*said, run.quantization)
        reads = (means, final_norm, seen, self.gradients, self.weights, agreed)
        check = partial(self.ranks.check_step, who_is(run.workload))
        host = self.record.read(step, *reads, check)
        if not host["is_finite"]:
            proposals += self.on_nan(step, host)
        if host["proposals"] or not host["is_finite"]:
            proposals = self.ranks.everybodys(proposals)
        verdict = self.arbitrate(proposals)
        discards = verdict.kind in (SkipStep, Rollback, Stop)
        step.discarded = discards or not host["is_finite"]
        if step.discarded:
            self.weights.buffers.put_back()
            self.history.note_discarded()
            self.record.add({"discarded": True})
        else:
            self.capture(step, "weights_before", capture.weights)
            tell_changed_rates(run, step, dispatch.acting_in(*BEFORE_OPTIMIZER))
            run.optimizer.step()
            self.capture(step, "weights_proposed", capture.weights)
            self.put_on_grids(step)
            self.record.add(measures("post_step", run=run, step=step))
        is_changed = self.apply(verdict)
        for evidence in self.detect(step, host, is_changed, verdict.counts):
            self.apply(self.on_collapse(step, evidence))

        self.record.end_step()
        self.look(step)
        self.leaving.agreed = int(host["signal"])

    # The parts of a step, in order -----------------------------------------------------------

    def begin(self, step: Step) -> None:
        """Set learning rate, counters, captures and gradients for a new step."""
        run, config = self.run, self.run.config
        run.step = step.index
        self.record.begin_step(step)
        self.place(step)
        self.record.tell_interventions(until=step.index - 2)
        for group in run.optimizer.param_groups:
            group["lr"] = step.learning_rate
        step.is_recorded = is_due(config.log_interval, step.index)
        step.is_recorded |= step.index == config.max_steps
        step.is_recorded |= self.dispatch.measures_on(run, step)
        self.needs = self.dispatch.needs(run, step)
        run.quantization.begin_step(
            step.index, tracking=step.is_recorded, errors="errors" in self.needs
        )
        run.optimizer.zero_grad(set_to_none=True)
        self.modes.put()
        self.weights.buffers.keep()
        if "snapshots" in self.needs and (step.index - 1) % config.snapshot_interval == 0:
            parts = (run.model, run.optimizer, run.quantization)
            taken = Snapshot.take(step.index - 1, *parts, self.weights.names())
            run.snapshots.append(taken)
            while len(run.snapshots) > config.max_snapshots:
                run.snapshots.popleft()
        self.weights.begin_step(compares=self.dispatch.acts_in(*BEFORE_OPTIMIZER))
        self.captures.attach(step, self.needs)

    def place(self, step: Step) -> Step:
        """Set what follows from the step's index; returns the step."""
        run = self.run
        step.epoch = run.epoch.after(step.index) if run.epoch else None
        step.learning_rate = learning_rate(run.config, step.index) * run.lr_scale
        return step

    def unscale(self, step: Step) -> None:
        """Take the loss scale out of the gradients, and measure them raw."""
        self.captures.detach()
        if isinstance(step.loss_scale, Tensor) or step.loss_scale != 1:
            self.gradients.multiply(1 / step.loss_scale)
        step.grad_norm = self.gradients.measure()
        self.capture(step, "gradients", capture.gradients)

    def clip(self, step: Step) -> Tensor:
        """Clip to ``grad_clip`` after the clippers; returns the norm before this, 0-dim."""
        limit, norm = self.run.config.grad_clip, step.grad_norm
        is_old = self.record.changes_gradients or self.dispatch.acts_in("post_backward")
        if norm is None or is_old:
            norm = self.gradients.norm()
        if limit > 0:
            # A norm that is not finite would spoil every gradient before it is seen which one is.
            factor = (limit / (norm + 1e-6)).clamp(max=1.0)
            self.gradients.multiply(torch.where(norm < math.inf, factor, 1.0))
        self.capture(step, "gradients_final", capture.gradients)
        return norm

    def capture(self, step: Step, need: str, take: Callable[[nn.Module], Any]) -> None:
        """Keep what plugins that are due on this step need."""
        if need in self.needs:
            setattr(step, need, take(self.run.model))

    def on_nan(self, step: Step, host: Mapping[str, Any]) -> list[Proposal]:
        """Record what was not finite first, keep the first anomaly, and ask the plugins."""
        where = locate_nonfinite(self.run, step, host)
        self.saving.tell_nonfinite(where)
        return self.dispatch.actions("on_nan", run=self.run, step=step, where=where)

    def arbitrate(self, proposals: Sequence[Proposal], cause: str | None = None) -> Verdict:
        """Decide between proposals; what was chosen and refused goes to the events."""
        if not proposals and cause is None:
            return Verdict()
        verdict = arbitrate(proposals, list(self.run.quantization.plan))
        emit_verdict(self.run, verdict, cause)
        return verdict

    def put_on_grids(self, step: Step) -> None:
        """Bring stored weights and optimizer state back on their grids; count what moved."""
        q = self.run.quantization
        q.store(self.run.optimizer)
        if step.is_recorded:
            q.measure_views()
            self.record.add(q.counters.stall_rates() | lost_stall_rate(q))

    def apply(self, verdict: Verdict) -> bool:
        """Carry out a verdict; returns whether it changed state or formats, from the next step."""
        if verdict.kind is Stop:
            self.ending.status = "stopped"
            self.history.stop = stop_of(verdict, self.run.step)
        is_changed = carry_out(self.run, verdict)
        if is_changed:
            self.start_anew()
        return is_changed

    def start_anew(self) -> None:
        """Judge, from the next step on, formats or a state that are others now."""
        self.detector.start_anew()
        self.history.forget_stall(self.run.step)
        self.captures = capture.LayerCaptures(self.run.quantization.modules)

    def detect(
        self, step: Step, host: Mapping[str, Any], is_changed: bool, counts: bool
    ) -> list[dict[str, Any]]:
        """Let the detector judge; tells its warnings, and returns the evidence of new collapses."""
        dead = {}
        if host["dead"] >= self.run.config.dead_neuron_window:
            dead = self.gradients.dead_by_name()
        stall = None
        # A diagnostic may have more steps recorded; what is judged must not depend on it.
        if is_due(self.run.config.log_interval, step.index):
            stall = judged_stall(self.history.stall_rates, self.run.quantization)
        collapses, warnings = self.detector.observe(
            step.index,
            host["loss"],
            is_finite=host["is_finite"],
            is_forgiven=is_changed,
            counts=counts,
            # Against the schedule's peak: an action that scaled the rate is meant to stay.
            learning_rate=step.learning_rate / self.run.lr_scale,
            stall=stall,
            dead=dead,
        )
        for evidence in warnings:
            self.run.emit("warning", message=evidence.pop("reason"), **evidence)
        return collapses

    def on_collapse(self, step: Step, evidence: dict[str, Any]) -> Verdict:
        """Record a collapse and ask the plugins; with no opinion, spent NaN patience stops."""
        self.record.flush()
        evidence = {**evidence, **layer_evidence(self.run)}
        said = {k: evidence[k] for k in ("cause", "reason")}
        self.history.collapses.append({"step": step.index, **said})
        self.run.emit("collapse", **evidence)
        proposals = self.dispatch.actions("on_collapse", run=self.run, step=step, evidence=evidence)
        proposals = self.ranks.everybodys(proposals)
        verdict = self.arbitrate(proposals, cause=evidence["cause"])
        if verdict.kind in (None, SkipStep) and evidence["cause"] == "nan_patience":
            self.ending.status = "collapsed"
        return verdict

    def look(self, step: Step) -> None:
        """Evaluate and save after a step, if it is time."""
        is_best = self.evaluating.is_due(step) and self.evaluating.evaluate(step)
        if is_best or is_due(self.run.config.checkpoint_interval, step.index):
            self.saving.save()

    # The whole run ---------------------------------------------------------------------------

    def train(self) -> dict[str, Any]:
        """Run to the end; returns the summary. `run_end` is always called.

        Raises:
            Interrupted: if a signal came, after a checkpoint or the end.
        """
        watching = self.dispatch.clock.watching
        with self.ranks, self.leaving.waiting(self.run.directory) as signals, watching(signals):
            self.run_to_the_end()
        return self.ending.summary()

    def run_to_the_end(self) -> None:
        """Train, evaluate, save, and say how it ended."""
        run = self.run
        self.record.begin_run()
        try:
            with (
                self.ending.noting_errors(),
                self.ranks.telling(),
                tell_recompiles(run.emit),
                memory_named(run.model),
                self.leaving.losing_workers(),
                changes_named(run.model),
            ):
                self.start()
                self.leaving.if_asked(self.saving.save)
                while self.ending.status == "running" and run.step < run.config.max_steps:
                    self.train_step(Step(run.step + 1))
                    self.leaving.if_asked(self.saving.save)
                if self.ending.status == "running":
                    self.ending.status = "finished"
                self.record.tell_scales([float(w.scale) for w in run.quantization.stored.values()])
                self.saving.save()
                if self.history.evaluation.get("step") != run.step:
                    self.evaluating.evaluate(self.place(Step(run.step)))
                    self.saving.save()
        finally:
            self.ending.end(self.saving.check_place, self.saving.seal)

    def start(self) -> None:
        """Tell everybody that the run starts, and write the checkpoint of step 0."""
        run = self.run
        random = random_state(run.device)
        with self.events.without_repeats():
            goes_on = self.is_restored and self.dispatch.acts_in("run_start")
            with as_restored(self.saving.state) if goes_on else nullcontext():
                self.dispatch.call("run_start", run=run)
            set_random_state(random, run.device)  # a plugin's imports may draw numbers
            self.modes.note()
            self.saving.note_start()
            self.saving.check_place()
            self.directory.open_logs()
            for kind, data in self.openings:
                run.emit(kind, **data)
            for remark in filter(run.quantization.context.is_news, self.remarks):
                run.emit("warning", message=remark)  # a resumed run told the others before
        if run.step == 0:
            self.evaluating.evaluate_start()
            self.saving.save()
        elif self.history.evaluation.get("step") != run.step:  # a signal came before it was done
            self.look(self.place(Step(run.step)))

    def resume(self, checkpoint: Checkpoint) -> None:
        """Take the state of a checkpoint; the next step is the one after."""
        self.saving.resume(checkpoint)
        self.is_restored = checkpoint.state is not None
        self.captures = capture.LayerCaptures(self.run.quantization.modules)
