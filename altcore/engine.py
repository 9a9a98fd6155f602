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
from contextlib import AbstractContextManager
from typing import Any

import torch
from attrs import asdict, define, field
from torch import Tensor, nn

from altcore import capture, checkpoint
from altcore.act import carry_out
from altcore.actions import (
    Proposal,
    Rollback,
    SkipStep,
    Stop,
    Verdict,
    arbitrate,
    describe,
)
from altcore.detect import Detector
from altcore.dispatch import Dispatcher, Plugin
from altcore.errors import AltcoreError, Interrupted
from altcore.locate import layer_evidence, locate_nonfinite
from altcore.record import EVENTS, METRICS, TIMINGS, Recorder, RunDirectory, means, read_lines
from altcore.signals import Signals
from altcore.state import (
    Run,
    Step,
    learning_rate,
    random_state,
    set_random_state,
    take_snapshot,
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
    parameters: list[nn.Parameter] = field(init=False)
    recorder: Recorder = field(init=False)
    dead_steps: Tensor = field(init=False)
    """int64, one a parameter: consecutive steps in which its gradient was dead."""
    taps: capture.LayerTaps = field(init=False)
    needs: set[str] = field(init=False, factory=set)
    scales: list[float] = field(init=False, factory=list)
    status: str = field(init=False, default="running")
    collapses: list[dict[str, Any]] = field(init=False, factory=list)
    evaluation: dict[str, Any] = field(init=False, factory=dict)
    best: float = field(init=False, default=math.inf)
    saved: str = field(init=False, default="")
    """The last checkpoint: a step that is best, at its interval and the last is saved once."""
    has_anomaly: bool = field(init=False, default=False)
    is_overflowing: bool = field(init=False, default=False)

    def __attrs_post_init__(self) -> None:
        self.parameters = [p for p in self.run.model.parameters() if p.requires_grad]
        self.recorder = Recorder(self.on_line)
        shape, device = len(self.parameters), self.run.device
        self.dead_steps = torch.zeros(shape, dtype=torch.int64, device=device)
        self.taps = capture.LayerTaps(self.run.quantization.layers)

    def train_step(self, step: Step) -> None:
        """Draw a batch, learn from it, judge, record: the docstring above, in code."""
        run, config = self.run, self.run.config
        actions, measures = self.dispatch.actions, self.dispatch.measures
        self.begin(step)
        proposals, losses = [], []
        for step.micro in range(config.gradient_accumulation_steps):
            step.batch = run.workload.batch("train", step.index, step.micro)
            with self.autocast():
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

        if not step.discarded:
            self.capture(step, "weights_before", capture.weights)
            run.optimizer.step()
            self.capture(step, "weights_proposed", capture.weights)
            self.put_on_grids(step)
            self.recorder.add(measures("post_step", run=run, step=step))
        self.apply(verdict)
        for evidence in self.detect(step, host):
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
        run.quantization.begin_step(step.index, tracking=step.is_recorded)
        run.optimizer.zero_grad(set_to_none=True)
        run.model.train()
        self.needs = self.dispatch.needs(step.index)
        if "snapshots" in self.needs and (step.index - 1) % config.snapshot_interval == 0:
            run.snapshots.append(take_snapshot(run, step.index - 1))
            while len(run.snapshots) > config.max_snapshots:
                run.snapshots.popleft()
        self.taps.attach(step, self.needs)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which the model runs."""
        is_bfloat16 = self.run.config.compute == "bfloat16"
        return torch.autocast(self.run.device.type, torch.bfloat16, enabled=is_bfloat16)

    def unscale(self, step: Step) -> None:
        """Take the loss scale out of the gradients; measure their norm, and which are dead."""
        self.taps.detach()
        gradients = self.gradients()
        if isinstance(step.loss_scale, Tensor) or step.loss_scale != 1:
            torch._foreach_mul_(gradients, 1 / step.loss_scale)
        norms = torch.stack(torch._foreach_norm(gradients))
        step.grad_norm = torch.linalg.vector_norm(norms)
        if len(gradients) == len(self.parameters):
            is_dead = norms < self.dead_norms()
            self.dead_steps = torch.where(is_dead, self.dead_steps + 1, 0)
        self.capture(step, "gradients", capture.gradients)

    def gradients(self) -> list[Tensor]:
        """Return the gradients that there are, in the order of the parameters."""
        found = [p.grad for p in self.parameters if p.grad is not None]
        if not found:
            raise AltcoreError("the loss depends on no parameter: there is no gradient")
        return found

    def dead_norms(self) -> Tensor:
        """Return, for each parameter, the norm below which its gradient is dead."""
        if self._dead_norms is None:
            threshold = self.run.config.dead_neuron_threshold
            norms = [threshold * math.sqrt(p.numel()) for p in self.parameters]
            self._dead_norms = torch.tensor(norms, device=self.run.device)
        return self._dead_norms

    _dead_norms: Tensor | None = field(init=False, default=None)

    def clip(self, step: Step) -> Tensor:
        """Clip to ``grad_clip`` after the clippers; returns the norm before this, 0-dim."""
        limit, gradients, norm = self.run.config.grad_clip, self.gradients(), step.grad_norm
        assert norm is not None
        if self.dispatch.implements("pre_step"):
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        if limit > 0:
            torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0))
        self.capture(step, "gradients_final", capture.gradients)
        return norm

    def capture(self, step: Step, need: str, take: Callable[[nn.Module], Any]) -> None:
        """Keep what plugins that are due on this step need."""
        if need in self.needs:
            setattr(step, need, take(self.run.model))

    def read(
        self, step: Step, losses: Sequence[Tensor], final_norm: Tensor, seen: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Make the step's one host read, and begin its line."""
        q = self.run.quantization
        values: dict[str, Any] = {
            "loss": losses[0] if len(losses) == 1 else torch.stack(losses).mean(),
            "grad_norm": step.grad_norm,
            "final_norm": final_norm,
            "nonfinite": q.nonfinite(),
            "dead": self.dead_steps.max(),
        }
        rates = q.met_rates() if step.is_recorded else {}
        if step.is_recorded and q.stored:
            values["scales"] = torch.stack([w.scale for w in q.stored.values()])
        host = self.recorder.read({**values, **rates, **seen})
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
                **({} if host["is_finite"] else {"discarded": True}),
            }
            self.recorder.begin(line)
            self.watch_overflow(host["overflow_rate"])
            self.watch_scales(host.get("scales", []))
        return host

    def on_nan(self, step: Step, host: Mapping[str, Any]) -> list[Proposal]:
        """Record what was not finite first, keep the first anomaly, and ask the plugins."""
        where = locate_nonfinite(self.run, host)
        self.run.emit("nan", **asdict(where), consecutive=self.detector.nonfinite + 1)
        if not self.has_anomaly:
            self.has_anomaly = True
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
            chosen=[{"plugin": p.plugin, **describe(p.action)} for p in verdict.chosen],
            refused=[
                {"plugin": r.proposal.plugin, **describe(r.proposal.action), "why": r.why}
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
            self.recorder.add(q.stall_rates())

    def apply(self, verdict: Verdict) -> None:
        """Carry out a verdict; formats count from the next step."""
        if verdict.kind is Stop:
            self.status = "stopped"
        if carry_out(self.run, verdict):
            self.detector.forget_nonfinite()
            self.taps = capture.LayerTaps(self.run.quantization.layers)

    def detect(self, step: Step, host: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Let the detector judge; returns the evidence of each new cause."""
        config, dead = self.run.config, {}
        if host["dead"] >= config.dead_neuron_window:
            names = [n for n, p in self.run.model.named_parameters() if p.requires_grad]
            dead = dict(zip(names, self.dead_steps.tolist(), strict=True))
        stall = None
        if step.is_recorded and self.recorder.previous:
            before = self.recorder.previous.values
            for which in ("stored", "view"):
                if stall is None and before[f"{which}_stall_rate"] is not None:
                    stall = (which, before[f"{which}_stall_rate"])
        return self.detector.observe(
            step.index,
            host["loss"],
            is_finite=host["is_finite"],
            learning_rate=step.learning_rate,
            stall=stall,
            dead=dead,
        )

    def on_collapse(self, step: Step, evidence: dict[str, Any]) -> Verdict:
        """Record a collapse and ask the plugins; with no opinion, spent NaN patience stops."""
        self.recorder.flush()
        evidence = {**evidence, **layer_evidence(self.run)}
        self.collapses.append({"step": step.index, **{k: evidence[k] for k in ("cause", "reason")}})
        self.run.emit("collapse", **evidence)
        proposals = self.dispatch.actions(
            "on_collapse", run=self.run, step=step, evidence=evidence
        )
        verdict = self.arbitrate(proposals, cause=evidence["cause"])
        if verdict.kind in (None, SkipStep) and evidence["cause"] == "nan_patience":
            self.status = "collapsed"
        return verdict

    def evaluate(self, step: Step) -> None:
        """Measure the validation loss, quantized and with float32 products, and tell."""
        run, config = self.run, self.run.config
        self.recorder.flush()
        with run.probe(), torch.no_grad(), self.autocast():
            run.model.eval()
            quantized = self.validation_loss()
            # Without anything quantized the two are one number.
            plain = quantized
            if run.quantization.layers:
                with run.quantization.off():
                    plain = self.validation_loss()
        self.evaluation = {"step": step.index, "val_loss": quantized, "val_loss_float32": plain}
        self.directory.append(METRICS, self.evaluation)
        self.dispatch.call("on_eval", run=run, step=step, metrics=self.evaluation)
        if quantized < self.best and math.isfinite(quantized):
            self.best = quantized
            self.save(f"step-{step.index:08d}", best=True)

    def validation_loss(self) -> float:
        """Return the mean loss over ``eval_steps`` validation batches, always the same ones."""
        run = self.run
        batches = (run.workload.batch("val", i, 0) for i in range(run.config.eval_steps))
        losses = [run.workload.loss(run.model, batch) for batch in batches]
        return float(torch.stack(losses).double().mean())

    # The whole run ---------------------------------------------------------------------------

    def train(self) -> dict[str, Any]:
        """Run to the end; returns the summary. `run_end` is always called."""
        run, step = self.run, Step(self.run.step)
        self.status, clock = "running", time.perf_counter()
        try:
            with Signals() as signals:
                self.dispatch.call("run_start", run=run)
                run.emit(self.opening[0], **self.opening[1])
                while self.status == "running" and run.step < run.config.max_steps:
                    step = Step(run.step + 1)
                    self.train_step(step)
                    clock = self.time(step, clock)
                    signals.leave_if_asked(lambda: self.save(f"step-{run.step:08d}"))
                if self.status == "running":
                    self.status = "finished"
                self.recorder.flush()
                if self.evaluation.get("step") != run.step:
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
        """Write what is left and say that the run is over."""
        try:
            self.recorder.flush()
        finally:
            summary = self.summary()
            self.run.emit("end", **summary)
            self.dispatch.call("run_end", run=self.run, summary=summary)
            self.directory.close()
        return summary

    def summary(self) -> dict[str, Any]:
        """Return what is printed at the end and kept in the last event."""
        lines = read_lines(self.directory.path / METRICS)
        losses = [x["loss"] for x in lines if "loss" in x]
        first = self.collapses[0] if self.collapses else {}
        return {
            "status": self.status,
            "steps": self.run.step,
            "final_loss": losses[-1] if losses else None,
            "val_loss": self.evaluation.get("val_loss"),
            "val_loss_float32": self.evaluation.get("val_loss_float32"),
            "best_val_loss": self.best if math.isfinite(self.best) else None,
            **{
                key: means(lines, key)
                for key in (
                    "stored_stall_rate",
                    "view_stall_rate",
                    "overflow_rate",
                    "flushed_rate",
                )
            },
            **self.facts,
            "shifts": self.run.shifts,
            "collapses": self.collapses,
            "failure_step": first.get("step"),
            "failure_reason": first.get("reason"),
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
        threshold = self.run.config.overflow_threshold
        was, self.is_overflowing = self.is_overflowing, rate is not None and rate > threshold
        if self.is_overflowing and not was:
            message = f"{rate:.2%} of quantized values overflow (overflow_threshold {threshold:g})"
            self.run.emit("warning", message=message)

    def watch_scales(self, scales: list[float]) -> None:
        """Tell of each stored weight whose scale changed since the last recorded step."""
        for name, before, now in zip(self.run.quantization.stored, self.scales, scales):  # noqa: B905 - the first read has nothing before it
            if before != now:
                self.run.emit("rescale", parameter=name, before=before, after=now)
        self.scales = scales

    # Checkpoints -----------------------------------------------------------------------------

    def save(self, name: str, best: bool = False) -> None:
        """Write a checkpoint; all metrics up to it are written first."""
        if not name.startswith("anomaly"):
            self.recorder.flush()
        folder = self.directory.path / "checkpoints"
        about = {"step": self.run.step, "plugins": {p.name: p.origin for p in self.dispatch.plugins}}
        path = folder / name
        if self.saved != name:
            checkpoint.save(folder, name, self.state_dict(), about)
            self.saved = name
            self.run.emit("checkpoint", path=str(path.relative_to(self.directory.path)))
        if not name.startswith("anomaly"):
            checkpoint.point(folder, "last", name)
            if best:
                checkpoint.point(folder, "best", name)
            checkpoint.prune(folder, self.run.config.max_checkpoints)

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
            "dead_steps": self.dead_steps,
            "lr_scale": run.lr_scale,
            "shifts": run.shifts,
            "reports": run.reports,
            "collapses": self.collapses,
            "evaluation": self.evaluation,
            "best": self.best,
            "scales": self.scales,
            "flags": {"anomaly": self.has_anomaly, "overflow": self.is_overflowing},
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
        self.dead_steps = state["dead_steps"].to(run.device)
        run.lr_scale = state["lr_scale"]
        run.shifts[:], run.reports[:] = state["shifts"], state["reports"]
        self.collapses, self.evaluation = list(state["collapses"]), dict(state["evaluation"])
        self.best, self.scales = state["best"], list(state["scales"])
        self.has_anomaly = state["flags"]["anomaly"]
        self.is_overflowing = state["flags"]["overflow"]
        self.taps = capture.LayerTaps(run.quantization.layers)


def due(interval: int, step: Step) -> bool:
    """Whether an interval falls on the step; 0 is never."""
    return interval > 0 and step.index % interval == 0


def outcome(verdict: Verdict, cause: str | None) -> str:
    """Say what follows from a verdict."""
    if verdict.kind is not None:
        by = ", ".join(p.plugin for p in verdict.chosen)
        return f"{verdict.kind.__name__} by {by}"
    return "the run stops" if cause == "nan_patience" else "recorded; the run goes on"
