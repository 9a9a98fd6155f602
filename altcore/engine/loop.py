"""The training loop. It alone acts; it emits events and obeys actions.

    run_start
    each step:
      each micro-batch: step.loss = workload loss; pre_backward;
        (loss × loss_scale / accumulation).backward()
      unscale; post_backward; pre_step; the engine's own grad_clip
      the step's one host read; if not finite: on_nan; arbitrate
      unless discarded: optimizer.step(), stored weights and optimizer state back on their grids,
        post_step
      detect: on_collapse; arbitrate; apply the verdict
      record: on_record; evaluate: on_eval; checkpoint
    run_end, always, on errors and interrupts too

The one host read also fetches what was measured after the optimizer in the step before. So
on_record of a step comes with the following step, or at once where the engine waits for the
device anyway: before on_collapse, an evaluation or a checkpoint, and at the end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from attrs import asdict, define, field
from torch import Tensor, nn

from altcore.engine import capture
from altcore.engine.apply import carry_out
from altcore.engine.collapse import Detector
from altcore.engine.compiling import watched
from altcore.engine.dispatch import Dispatcher, Plugin
from altcore.engine.gradients import GradientNorms
from altcore.engine.nonfinite import layer_evidence, locate_nonfinite
from altcore.engine.randomness import random_state, set_random_state
from altcore.engine.recorder import Recorder
from altcore.engine.signals import Signals
from altcore.engine.stall import judged, lost_rate
from altcore.engine.state import Progress, Run, Step, learning_rate, take_snapshot
from altcore.engine.validation import validation_losses
from altcore.errors import Interrupted
from altcore.hooks import Proposal, Rollback, SkipStep, Stop, Verdict, arbitrate, describe_action
from altcore.runs import (
    EVENTS,
    METRICS,
    TIMINGS,
    RunDirectory,
    point_to,
    prune_checkpoints,
    save_checkpoint,
    summarize,
)


@define(eq=False)
class Engine:
    """Trains one run to its end. Built by `altcore.api`."""

    run: Run
    directory: RunDirectory
    dispatch: Dispatcher
    detector: Detector
    facts: Mapping[str, Any]
    """What the summary repeats: shares quantized, and what the workload says of itself."""
    opening: tuple[str, dict[str, Any]] = field(init=False, default=("start", {}))
    """The first event, and what it says."""
    remarks: list[str] = field(init=False, factory=list)
    """What is warned of when the run starts."""
    recorder: Recorder = field(init=False)
    gradients: GradientNorms = field(init=False)
    taps: capture.LayerTaps = field(init=False)
    needs: set[str] = field(init=False, factory=set)
    progress: Progress = field(init=False, factory=Progress)
    status: str = field(init=False, default="running")
    saved: str = field(init=False, default="")
    """The last checkpoint: a step that is best, at its interval and the last is saved once."""

    def __attrs_post_init__(self) -> None:
        self.recorder = Recorder(self.on_line)
        self.gradients = GradientNorms(self.run.model, self.run.config.dead_neuron_threshold)
        self.taps = capture.LayerTaps(self.run.quantization.modules)

    def train_step(self, step: Step) -> None:
        """Draw a batch, learn from it, judge, record: the docstring above, in code."""
        run, config = self.run, self.run.config
        actions, measures = self.dispatch.actions, self.dispatch.measures
        self.begin(step)
        proposals, losses = [], []
        for step.micro in range(config.gradient_accumulation_steps):
            step.batch = run.workload.batch("train", step.index, step.micro)
            with run.autocast(), self.dispatch.watching(run, step):
                step.loss = run.workload.loss(run.model, step.batch)
            proposals += actions("pre_backward", run=run, step=step)
            (step.loss * (step.loss_scale / config.gradient_accumulation_steps)).backward()
            losses.append(step.loss.detach())
        self.unscale(step)
        seen = measures("post_backward", run=run, step=step)
        proposals += actions("pre_step", run=run, step=step)
        final_norm = self.clip(step)

        host = self.read(step, losses, final_norm, seen)
        if not host["is_finite"]:
            proposals += self.on_nan(step, host)
        verdict = self.arbitrate(proposals)
        discards = verdict.kind in (SkipStep, Rollback, Stop)
        step.discarded = discards or not host["is_finite"]

        if step.discarded:
            self.progress.discarded += 1
            self.recorder.add({"discarded": True})
        else:
            self.capture(step, "weights_before", capture.weights)
            run.optimizer.step()
            self.capture(step, "weights_proposed", capture.weights)
            self.put_on_grids(step)
            self.recorder.add(measures("post_step", run=run, step=step))
        is_changed = self.apply(verdict)
        for evidence in self.detect(step, host, is_changed, verdict.counts):
            self.apply(self.on_collapse(step, evidence))

        self.recorder.end_step()
        if due(config.eval_interval, step):
            self.evaluate(step)
        if due(config.checkpoint_interval, step):
            self.save(f"step-{step.index:08d}")

    # The parts of a step, in order -----------------------------------------------------------

    def begin(self, step: Step) -> None:
        """Set learning rate, counters, captures and gradients for a new step."""
        run, config = self.run, self.run.config
        run.step = step.index
        step.learning_rate = learning_rate(config, step.index) * run.lr_scale
        for group in run.optimizer.param_groups:
            group["lr"] = step.learning_rate
        step.is_recorded = due(config.log_interval, step) or self.dispatch.measures_on(step.index)
        self.needs = self.dispatch.needs(step.index)
        run.quantization.begin_step(
            step.index, tracking=step.is_recorded, errors="errors" in self.needs
        )
        run.optimizer.zero_grad(set_to_none=True)
        run.model.train()
        if "snapshots" in self.needs and (step.index - 1) % config.snapshot_interval == 0:
            run.snapshots.append(take_snapshot(run, step.index - 1))
            while len(run.snapshots) > config.max_snapshots:
                run.snapshots.popleft()
        self.taps.attach(step, self.needs)

    def unscale(self, step: Step) -> None:
        """Take the loss scale out of the gradients, and measure them raw."""
        self.taps.detach()
        if isinstance(step.loss_scale, Tensor) or step.loss_scale != 1:
            self.gradients.multiply(1 / step.loss_scale)
        step.grad_norm = self.gradients.measure()
        self.capture(step, "gradients", capture.gradients)

    def clip(self, step: Step) -> Tensor:
        """Clip to ``grad_clip`` after the clippers; returns the norm before this, 0-dim."""
        limit, norm = self.run.config.grad_clip, step.grad_norm
        if norm is None or self.dispatch.implements("pre_step"):
            norm = self.gradients.norm()
        if limit > 0:
            # A norm that is not finite would spoil every gradient before it is seen which one is.
            factor = (limit / (norm + 1e-6)).clamp(max=1.0)
            self.gradients.multiply(torch.where(torch.isfinite(norm), factor, 1.0))
        self.capture(step, "gradients_final", capture.gradients)
        return norm

    def capture(self, step: Step, need: str, take: Callable[[nn.Module], Any]) -> None:
        """Keep what plugins that are due on this step need."""
        if need in self.needs:
            setattr(step, need, take(self.run.model))

    def read(
        self, step: Step, losses: list[Tensor], final_norm: Tensor, seen: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Make the step's one host read, and begin its line."""
        q = self.run.quantization
        values: dict[str, Any] = {
            "loss": losses[0] if len(losses) == 1 else torch.stack(losses).mean(),
            "grad_norm": step.grad_norm,
            "final_norm": final_norm,
            "nonfinite": q.nonfinite(),
            "dead": self.gradients.dead_steps.max(),
        }
        rates = q.met_rates() if step.is_recorded else {}
        if step.is_recorded and q.stored:
            values["scales"] = torch.stack([w.scale for w in q.stored.values()])
        host = self.recorder.read({**values, **rates, **seen})
        if self.recorder.previous:
            every = self.run.config.log_interval
            self.progress.note_stall(self.recorder.previous.values, every)
        norms = (host["loss"], host["grad_norm"], host["final_norm"])
        host["is_finite"] = all(map(math.isfinite, norms)) and not host["nonfinite"]
        if step.is_recorded:
            line = {
                "step": step.index,
                "loss": host["loss"],
                "learning_rate": step.learning_rate,
                "grad_norm": host["grad_norm"],
                "stored_stall_rate": None,
                "view_stall_rate": None,
                **{k: host[k] for k in (*rates, *seen)},
            }
            self.recorder.begin(line)
            self.watch_overflow(host["overflow_rate"])
            self.watch_scales(host.get("scales", []))
        return host

    def on_nan(self, step: Step, host: Mapping[str, Any]) -> list[Proposal]:
        """Record what was not finite first, keep the first anomaly, and ask the plugins."""
        where = locate_nonfinite(self.run, host)
        self.run.emit("nan", **asdict(where), consecutive=self.detector.nonfinite + 1)
        if not self.progress.has_anomaly:
            self.progress.has_anomaly = True
            self.save(f"anomaly_{step.index}")
        return self.dispatch.actions("on_nan", run=self.run, step=step, where=where)

    def arbitrate(self, proposals: Sequence[Proposal], cause: str | None = None) -> Verdict:
        """Decide between proposals; what was chosen and refused goes to the events."""
        if not proposals and cause is None:
            return Verdict()
        verdict = arbitrate(proposals, list(self.run.quantization.plan))
        self.run.emit(
            "verdict",
            cause=cause,
            chosen=[{"plugin": p.plugin, **describe_action(p.action)} for p in verdict.chosen],
            refused=[
                {"plugin": r.proposal.plugin, **describe_action(r.proposal.action), "why": r.why}
                for r in verdict.refused
            ],
            outcome=outcome(verdict, cause),
        )
        return verdict

    def put_on_grids(self, step: Step) -> None:
        """Bring stored weights and optimizer state back on their grids; count what moved."""
        q = self.run.quantization
        q.store(self.run.optimizer)
        if step.is_recorded:
            q.measure_views()
            self.recorder.add(q.stall_rates() | lost_rate(q))

    def apply(self, verdict: Verdict) -> bool:
        """Carry out a verdict; returns whether it changed state or formats, from the next step."""
        if verdict.kind is Stop:
            self.status = "stopped"
        is_changed = carry_out(self.run, verdict)
        if is_changed:
            self.detector.start_anew()
            self.taps = capture.LayerTaps(self.run.quantization.modules)
        return is_changed

    def detect(
        self, step: Step, host: Mapping[str, Any], is_changed: bool, counts: bool
    ) -> list[dict[str, Any]]:
        """Let the detector judge; tells its warnings, and returns the evidence of new collapses."""
        dead = {}
        if host["dead"] >= self.run.config.dead_neuron_window:
            dead = self.gradients.dead_by_name()
        stall = None
        # A diagnostic may have more steps recorded; what is judged must not depend on it.
        if due(self.run.config.log_interval, step):
            stall = judged(self.progress.stall_rates, self.run.quantization)
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
        self.recorder.flush()
        evidence = {**evidence, **layer_evidence(self.run)}
        said = {k: evidence[k] for k in ("cause", "reason")}
        self.progress.collapses.append({"step": step.index, **said})
        self.run.emit("collapse", **evidence)
        proposals = self.dispatch.actions("on_collapse", run=self.run, step=step, evidence=evidence)
        verdict = self.arbitrate(proposals, cause=evidence["cause"])
        if verdict.kind in (None, SkipStep) and evidence["cause"] == "nan_patience":
            self.status = "collapsed"
        return verdict

    def evaluate(self, step: Step) -> None:
        """Measure the validation losses, tell, and keep the best state."""
        self.recorder.flush()
        progress = self.progress
        progress.evaluation = {"step": step.index, **validation_losses(self.run)}
        self.detector.evaluated(step.index, progress.evaluation["val_loss"])
        self.saved = ""  # a checkpoint of this step does not know of the evaluation
        self.directory.append(METRICS, progress.evaluation)
        self.dispatch.call("on_eval", run=self.run, step=step, metrics=progress.evaluation)
        if progress.evaluation["val_loss"] < progress.best:
            progress.best = progress.evaluation["val_loss"]
            self.save(f"step-{step.index:08d}", best=True)

    # The whole run ---------------------------------------------------------------------------

    def train(self) -> dict[str, Any]:
        """Run to the end; returns the summary. `run_end` is always called."""
        run, step = self.run, Step(self.run.step)
        self.status, clock = "running", time.perf_counter()
        try:
            with Signals() as signals, watched(run.emit):
                random = random_state(run.device)
                self.dispatch.call("run_start", run=run)
                set_random_state(random, run.device)  # who only looks may have imported much
                run.emit(self.opening[0], **self.opening[1])
                for remark in self.remarks:
                    run.emit("warning", message=remark)
                while self.status == "running" and run.step < run.config.max_steps:
                    step = Step(run.step + 1)
                    self.train_step(step)
                    clock = self.time(step, clock)
                    signals.leave_if_asked(lambda: self.save(f"step-{run.step:08d}"))
                if self.status == "running":
                    self.status = "finished"
                self.watch_scales([float(w.scale) for w in run.quantization.stored.values()])
                self.recorder.flush()
                if self.progress.evaluation.get("step") != run.step:
                    self.evaluate(step)
                self.save(f"step-{run.step:08d}")
        except BaseException as error:
            is_leaving = isinstance(error, Interrupted | KeyboardInterrupt)
            self.status = "interrupted" if is_leaving else "failed"
            self.facts = {**self.facts, "error": f"{type(error).__name__}: {error}"}
            raise
        finally:
            summary = self.end()
        return summary

    def end(self) -> dict[str, Any]:
        """Write what is left and say that the run is over; each part comes if another fails."""
        with ExitStack() as always:
            always.callback(self.directory.close)
            try:
                self.recorder.flush()
            finally:
                summary = self.summary()
                always.callback(self.dispatch.call, "run_end", run=self.run, summary=summary)
                self.run.emit("end", **summary)
        return summary

    def summary(self) -> dict[str, Any]:
        """Return what is printed at the end and kept in the last event."""
        return {
            "status": self.status,
            "steps": self.run.step,
            **summarize(self.directory.path),
            **self.progress.summary(),
            **self.facts,
            "shifts": self.run.shifts,
            "degraded": self.run.degraded,
            "reports": self.run.reports,
            "directory": str(self.directory.path),
        }

    def time(self, step: Step, since: float) -> float:
        """Write the step's duration; returns the time now."""
        now = time.perf_counter()
        if step.is_recorded:
            items = self.run.workload.items_per_batch * self.run.config.gradient_accumulation_steps
            seconds = now - since
            rate = {f"{self.run.workload.item}_per_second": items / seconds}
            self.directory.append(TIMINGS, {"step": step.index, "seconds": seconds, **rate})
        return now

    # What is told ----------------------------------------------------------------------------

    def on_line(self, line: dict[str, Any]) -> None:
        """Write a complete line of metrics, and tell it."""
        self.progress.note_stall(line, self.run.config.log_interval)
        self.directory.append(METRICS, line)
        step = Step(line["step"], learning_rate=line["learning_rate"], is_recorded=True)
        self.dispatch.call("on_record", run=self.run, step=step, metrics=line)

    def emit(self, event: str, **data: Any) -> None:
        """Write an event, and tell it."""
        line = {"step": self.run.step, "event": event, **data}
        self.directory.append(EVENTS, line)
        self.dispatch.call("on_event", run=self.run, event=line)

    def on_broken(self, plugin: Plugin, message: str) -> None:
        """Mark the run as degraded: a plugin that only looks was disabled."""
        self.run.degraded.append(plugin.name)
        self.run.emit("degraded", plugin=plugin.name, message=message)

    def watch_overflow(self, rate: float | None) -> None:
        """Warn, once until it clears, of an overflow rate above the threshold."""
        threshold, was = self.run.config.overflow_threshold, self.progress.is_overflowing
        self.progress.is_overflowing = rate is not None and rate > threshold
        if self.progress.is_overflowing and not was:
            message = f"{rate:.2%} of quantized values overflow (overflow_threshold {threshold:g})"
            self.run.emit("warning", message=message)

    def watch_scales(self, scales: list[float]) -> None:
        """Tell of each stored weight whose scale changed since the last recorded step."""
        known = self.progress.scales
        for name, now in zip(self.run.quantization.stored, scales, strict=bool(scales)):
            before = known.get(name, now)
            if before != now:
                self.run.emit("rescale", parameter=name, before=before, after=now)
            known[name] = now

    # Checkpoints -----------------------------------------------------------------------------

    def save(self, name: str, best: bool = False) -> None:
        """Write a checkpoint; all metrics up to it are written first."""
        if not name.startswith("anomaly"):
            self.recorder.flush()
        folder = self.directory.path / "checkpoints"
        about = {
            "step": self.run.step,
            "plugins": {p.name: p.origin for p in self.dispatch.plugins},
        }
        path = folder / name
        if self.saved != name:
            save_checkpoint(folder, name, self.state_dict(), about)
            self.saved = name
            self.run.emit("checkpoint", path=str(path.relative_to(self.directory.path)))
        if not name.startswith("anomaly"):
            point_to(folder, "last", name)
            if best:
                point_to(folder, "best", name)
            prune_checkpoints(folder, self.run.config.max_checkpoints)

    def state_dict(self) -> dict[str, Any]:
        """Return all that the rest of the run depends on: tensors and plain data."""
        run = self.run
        return {
            "step": run.step,
            "model": run.model.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "quantization": run.quantization.state_dict(),
            "plugins": self.dispatch.state_dict(),
            "random": random_state(run.device),
            "detector": self.detector.state_dict(),
            "dead_steps": self.gradients.dead_steps,
            "lr_scale": run.lr_scale,
            "shifts": run.shifts,
            "reports": run.reports,
            "progress": asdict(self.progress),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; the next step is the one after."""
        run = self.run
        run.step = state["step"]
        run.quantization.load_state_dict(state["quantization"], state["model"])
        run.optimizer.load_state_dict(state["optimizer"])
        self.dispatch.load_state_dict(state["plugins"])
        set_random_state(state["random"], run.device)
        self.detector.load_state_dict(state["detector"])
        self.gradients.dead_steps = state["dead_steps"].to(run.device)
        run.lr_scale = state["lr_scale"]
        run.shifts[:], run.reports[:] = state["shifts"], state["reports"]
        self.progress = Progress(**state["progress"])
        self.taps = capture.LayerTaps(run.quantization.modules)


def due(interval: int, step: Step) -> bool:
    """Whether an interval falls on the step; 0 is never."""
    return interval > 0 and step.index % interval == 0


def outcome(verdict: Verdict, cause: str | None) -> str:
    """Say what follows from a verdict."""
    if verdict.kind is not None:
        by = ", ".join(p.plugin for p in verdict.chosen)
        return f"{verdict.kind.__name__} by {by}"
    return "the run stops" if cause == "nan_patience" else "recorded; the run goes on"
