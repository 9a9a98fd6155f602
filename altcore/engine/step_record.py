"""The record of a run: lines of metrics and timings, and the warnings that their numbers give."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from attrs import define, field
from torch import Tensor

from altcore.builtin_types import digits
from altcore.engine.clock import Clock
from altcore.engine.dispatch import Dispatcher
from altcore.engine.gradients import GradientNorms
from altcore.engine.guards import check_loss_scale
from altcore.engine.history import RunHistory
from altcore.engine.metric_lines import Line, MetricLines
from altcore.engine.schedule import is_due
from altcore.engine.state import Run, Step
from altcore.engine.weights import WeightCheck
from altcore.runs import AFTER_PLUGINS, METRICS, TIMINGS, RunDirectory, read_lines


@define(eq=False)
class StepRecord:
    """Reads the device once a step, and writes what is to be recorded of it."""

    run: Run
    directory: RunDirectory
    dispatch: Dispatcher
    history: RunHistory
    lines: MetricLines = field(init=False)
    clock: Clock = field(init=False, factory=lambda: Clock.after(()))
    step: Step = field(init=False, factory=lambda: Step(0))
    """The last step that began."""
    held: list[dict[str, Any]] = field(init=False, factory=list)
    """Lines that interventions have not heard of yet; kept in checkpoints, so that a run that goes
    on hands them on in its first two steps."""

    def __attrs_post_init__(self) -> None:
        self.lines = MetricLines(self.write)

    def read(
        self,
        step: Step,
        losses: Mapping[str, Tensor],
        final_norm: Tensor,
        measures: Mapping[str, Any],
        gradients: GradientNorms,
        weights: WeightCheck,
        agreed: Mapping[str, Any],
        check: Callable[[Mapping[str, Any]], None],
    ) -> dict[str, Any]:
        """Make the step's one host read, and begin its line.

        ``losses`` are loss and measures of the workload; ``agreed`` is what `Ranks.agree` returned,
        and ``check`` raises for what was read if ranks differ, before anything of it is recorded.
        """
        q, own = self.run.quantization, dict(losses)
        values: dict[str, Any] = {
            **agreed,
            "loss": own.pop("loss"),
            "grad_norm": step.grad_norm,
            "final_norm": final_norm,
            "nonfinite": q.counters.nonfinite() if q.quantizers else 0,
            "weights_norm": weights.norm(),
            "norm_at_start": weights.at_start,
            "dead": gradients.dead_steps.max(),
            "loss_scale": step.loss_scale,
        }
        rates = q.counters.met_rates() if step.is_recorded else {}
        if step.is_recorded and q.stored:
            values["scales"] = torch.stack([w.scale for w in q.stored.values()])
        told = {f"/{name}": value for name, value in own.items() if step.is_recorded}
        host = self.lines.read({**values, **rates, **measures, **told})
        check(host)
        check_loss_scale(step, host["loss_scale"])
        if self.lines.previous:
            every = self.run.config.log_interval
            self.history.note_stall(self.lines.previous.values, every)
        self.history.note_loss(step.index, host["loss"])
        self._judge(step, host, weights)
        if step.is_recorded:
            self._begin_line(step, host, own, (*rates, *measures))
        return host

    def _judge(self, step: Step, host: dict[str, Any], weights: WeightCheck) -> None:
        """Add to the numbers of a step whether it is finite, and which weight is not."""
        norms = (host["loss"], host["grad_norm"], host["final_norm"])
        at_start, before = host["norm_at_start"], step.index - 1
        bad = weights.judge(host["weights_norm"], before, is_running=True, at_start=at_start)
        host["bad_state"] = bad
        is_bad = bad is not None or bool(host["nonfinite"] or host["is_bad"])
        host["is_finite"] = all(map(math.isfinite, norms)) and not is_bad

    def _begin_line(
        self, step: Step, host: Mapping[str, Any], own: Iterable[str], more: Iterable[str]
    ) -> None:
        """Begin a step's line: of the workload's ``own`` measures, and ``more`` of the numbers."""
        line = {
            **step.place(),
            "loss": host["loss"],
            **{name: host[f"/{name}"] for name in own},
            "learning_rate": step.learning_rate,
            "grad_norm": host["grad_norm"],
            **({AFTER_PLUGINS: host["final_norm"]} if self.changes_gradients else {}),
            "stored_stall_rate": None,
            "view_stall_rate": None,
            **{name: host[name] for name in more},
        }
        self.lines.begin(line)
        self.tell_overflow(host["overflow_rate"])
        self.tell_scales(host.get("scales", []))

    @property
    def changes_gradients(self) -> bool:
        """Whether plugins work on gradients before the optimizer does, as clippers do."""
        return self.dispatch.implements("pre_step")

    def add(self, measures: Mapping[str, Any]) -> None:
        """Add measures that are still on the device to this step's line."""
        self.lines.add(measures)

    def begin_run(self) -> None:
        """Start the run's clock; that of a resumed run goes on where its record ends."""
        self.clock = Clock.after(read_lines(self.directory.path / TIMINGS))

    def begin_step(self, step: Step) -> None:
        """Start the step's clock."""
        self.step = step
        self.clock.begin_step()

    def end_step(self) -> None:
        """Stop the step's clock, and write the line of the step before, complete by now."""
        self.stop_clock()
        self.lines.end_step()

    def flush(self) -> None:
        """Read what is outstanding, and write every line."""
        self.stop_clock()
        self.lines.flush()

    def stop_clock(self) -> None:
        """Write how long the step took, before its evaluation and checkpoint."""
        timings = self.clock.end_step(sum(self.step.items))
        line = self.lines.current
        if timings and line is not None:
            line.timings = timings
            elapsed = {"elapsed_seconds": self.clock.elapsed()}
            self.directory.append(TIMINGS, {"step": self.step.index, **timings, **elapsed})

    def write(self, line: Line) -> None:
        """Write a complete line of metrics, and tell it to those who only look."""
        self.history.note_stall(line.values, self.run.config.log_interval)
        self.directory.append(METRICS, line.values)
        self.tell(line.values, acting=False, timings=line.timings)
        if self.concerns_interventions(line.values):
            self.held.append(line.values)

    def tell(self, metrics: Mapping[str, Any], *, acting: bool, **more: Any) -> None:
        """Call ``on_record`` of the interventions, or of all others."""
        if not self.dispatch.implements("on_record"):
            return
        place = (metrics["step"], metrics.get("epoch"), metrics["learning_rate"])
        step = Step(*place, is_recorded=True)
        given = {"step": step, "metrics": metrics, **more}
        self.dispatch.call("on_record", acting=acting, run=self.run, **given)

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

    def tell_overflow(self, rate: float | None) -> None:
        """Warn, once until it clears, of an overflow rate above the threshold."""
        threshold, was = self.run.config.overflow_threshold, self.history.is_overflowing
        self.history.is_overflowing = rate is not None and rate > threshold
        if self.history.is_overflowing and not was:
            message = (
                f"{rate:.2%} of quantized values overflow (overflow_threshold {digits(threshold)})"
            )
            self.run.emit("warning", message=message, cause="overflow", overflow_rate=rate)

    def tell_scales(self, scales: Sequence[float]) -> None:
        """Tell of each stored weight whose scale changed since the last recorded step."""
        known = self.history.scales
        for name, now in zip(self.run.quantization.stored, scales, strict=bool(scales)):
            before = known.get(name, now)
            if before != now:
                self.run.emit("rescale", parameter=name, before=before, after=now)
            known[name] = now
