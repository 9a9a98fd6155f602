"""The record of a run: lines of metrics and timings, and the warnings that their numbers give."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import define, field
from torch import Tensor

from altcore.builtin_types import digits
from altcore.engine.dispatch import Dispatcher
from altcore.engine.gradients import GradientNorms
from altcore.engine.losses import means
from altcore.engine.progress import Progress
from altcore.engine.recorder import Recorder
from altcore.engine.schedule import is_due
from altcore.engine.state import Run, Step
from altcore.runs import METRICS, TIMINGS, RunDirectory


@define(eq=False)
class StepRecord:
    """Reads the device once a step, and writes what is to be recorded of it."""

    run: Run
    directory: RunDirectory
    dispatch: Dispatcher
    progress: Progress
    recorder: Recorder = field(init=False)
    held: list[dict[str, Any]] = field(init=False, factory=list)
    """Lines that interventions have not heard of yet; kept in checkpoints."""

    def __attrs_post_init__(self) -> None:
        self.recorder = Recorder(self.write)

    def read(
        self,
        step: Step,
        losses: Sequence[Mapping[str, Tensor]],
        final_norm: Tensor,
        measures: Mapping[str, Any],
        gradients: GradientNorms,
    ) -> dict[str, Any]:
        """Make the step's one host read, and begin its line.

        ``losses`` are loss and measures of the workload, a mapping for each micro-batch.
        """
        q, own = self.run.quantization, means(losses)
        values: dict[str, Any] = {
            "loss": own.pop("loss"),
            "grad_norm": step.grad_norm,
            "final_norm": final_norm,
            "nonfinite": q.counters.nonfinite(),
            "dead": gradients.dead_steps.max(),
        }
        rates = q.counters.met_rates() if step.is_recorded else {}
        if step.is_recorded and q.stored:
            values["scales"] = torch.stack([w.scale for w in q.stored.values()])
        told = {f"/{name}": value for name, value in own.items() if step.is_recorded}
        host = self.recorder.read({**values, **rates, **measures, **told})
        if self.recorder.previous:
            every = self.run.config.log_interval
            self.progress.note_stall(self.recorder.previous.values, every)
        norms = (host["loss"], host["grad_norm"], host["final_norm"])
        host["is_finite"] = all(map(math.isfinite, norms)) and not host["nonfinite"]
        if step.is_recorded:
            line = {
                **step.place(),
                "loss": host["loss"],
                **{name: host[f"/{name}"] for name in own},
                "learning_rate": step.learning_rate,
                "grad_norm": host["grad_norm"],
                "stored_stall_rate": None,
                "view_stall_rate": None,
                **{k: host[k] for k in (*rates, *measures)},
            }
            self.recorder.begin(line)
            self.tell_overflow(host["overflow_rate"])
            self.tell_scales(host.get("scales", []))
        return host

    def add(self, measures: Mapping[str, Any]) -> None:
        """Add measures that are still on the device to this step's line."""
        self.recorder.add(measures)

    def end_step(self) -> None:
        """Write the line of the step before, which is complete by now."""
        self.recorder.end_step()

    def flush(self) -> None:
        """Read what is outstanding, and write every line."""
        self.recorder.flush()

    def write(self, line: dict[str, Any]) -> None:
        """Write a complete line of metrics, and tell it."""
        self.progress.note_stall(line, self.run.config.log_interval)
        self.directory.append(METRICS, line)
        self.tell(line, acting=False)
        if self.concerns_interventions(line):
            self.held.append(line)

    def tell(self, line: Mapping[str, Any], *, acting: bool) -> None:
        """Call ``on_record`` of the interventions, or of all others."""
        step = Step(line["step"], line.get("epoch"), line["learning_rate"], is_recorded=True)
        self.dispatch.call("on_record", acting=acting, run=self.run, step=step, metrics=line)

    def concerns_interventions(self, line: Mapping[str, Any]) -> bool:
        """Whether the step would have a line without any diagnostic that nobody requires."""
        if is_due(self.run.config.log_interval, line["step"]):
            return True
        return any(key.partition("/")[0] in self.dispatch.heard for key in line)

    def tell_interventions(self, until: int) -> None:
        """Hand the lines up to step ``until`` to the interventions.

        A line is complete sooner or later as the engine waits for the device or not. Handed on at
        a fixed step, it cannot make a decision depend on that.
        """
        while self.held and self.held[0]["step"] <= until:
            self.tell(self.held.pop(0), acting=True)

    def time(self, step: Step, since: float) -> float:
        """Write the step's duration; returns the time now, in seconds."""
        now = time.perf_counter()
        if step.is_recorded:
            items = self.run.workload.items_per_batch * self.run.config.gradient_accumulation_steps
            seconds = now - since
            rate = {f"{self.run.workload.item}_per_second": items / seconds}
            self.directory.append(TIMINGS, {"step": step.index, "seconds": seconds, **rate})
        return now

    def tell_overflow(self, rate: float | None) -> None:
        """Warn, once until it clears, of an overflow rate above the threshold."""
        threshold, was = self.run.config.overflow_threshold, self.progress.is_overflowing
        self.progress.is_overflowing = rate is not None and rate > threshold
        if self.progress.is_overflowing and not was:
            message = (
                f"{rate:.2%} of quantized values overflow (overflow_threshold {digits(threshold)})"
            )
            self.run.emit("warning", message=message)

    def tell_scales(self, scales: Sequence[float]) -> None:
        """Tell of each stored weight whose scale changed since the last recorded step."""
        known = self.progress.scales
        for name, now in zip(self.run.quantization.stored, scales, strict=bool(scales)):
            before = known.get(name, now)
            if before != now:
                self.run.emit("rescale", parameter=name, before=before, after=now)
            known[name] = now
