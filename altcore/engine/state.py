"""What hooks see: the run and the step; and the parts of a run that can be saved and restored."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from attrs import Attribute, define, field, frozen
from torch import Tensor, nn

from altcore.config import TrainConfig
from altcore.engine.randomness import random_state, set_random_state
from altcore.errors import AltcoreError
from altcore.quantization import Quantization


class Workload(Protocol):
    """What a workload's ``build(seed, device)`` returns."""

    @property
    def model(self) -> nn.Module: ...
    @property
    def items_per_batch(self) -> int: ...
    @property
    def item(self) -> str: ...
    @property
    def facts(self) -> Mapping[str, str | int | float]: ...
    def batch(self, split: str, step: int, micro: int) -> Any: ...
    def loss(self, model: nn.Module, batch: Any) -> Tensor: ...


def _count(step: Step, attribute: Attribute[Tensor | None], value: Tensor | None) -> Tensor | None:
    step.times_set += 1
    return value


@define(eq=False)
class Step:
    """One step, as hooks see it. Tensors stay on the device; gradients are ``p.grad``."""

    index: int
    """Counts batches drawn, from 1; it never runs backwards."""
    learning_rate: float = 0.0
    micro: int = 0
    batch: Any = None
    loss: Tensor | None = field(default=None, on_setattr=_count)
    """The current micro-batch's loss, 0-dim; pre_backward may replace it."""
    times_set: int = 0
    """How often ``loss`` was set: more often than there were micro-batches if it was replaced."""
    loss_scale: float | Tensor = 1.0
    """What the loss is multiplied by before backward; pre_backward of micro-batch 0 sets it."""
    grad_norm: Tensor | None = None
    """L2 norm of all raw gradients, 0-dim, before any clipping."""
    is_recorded: bool = False
    discarded: bool = False
    weights_before: Mapping[str, Tensor] | None = None
    weights_proposed: Mapping[str, Tensor] | None = None
    gradients: Mapping[str, Tensor] | None = None
    gradients_final: Mapping[str, Tensor] | None = None
    activations: dict[str, Tensor] | None = None
    output_gradients: dict[str, Tensor] | None = None


@define(eq=False)
class Run:
    """One run, as hooks see it."""

    config: TrainConfig
    directory: Path
    device: torch.device
    workload: Workload
    model: nn.Module
    optimizer: torch.optim.Optimizer
    quantization: Quantization
    emit: Callable[..., None]
    """``emit(kind, **data)`` writes a line to events.jsonl, with the step."""
    step: int = 0
    """The last step begun."""
    lr_scale: float = 1.0
    """Product of all `ScaleLearningRate` actions."""
    snapshots: deque[Snapshot] = field(factory=deque)
    shifts: list[dict[str, Any]] = field(factory=list)
    """Changes of recipe so far, as the events hold them."""
    reports: list[str] = field(factory=list)
    """Paths of reports that were written, for the summary."""
    degraded: list[str] = field(factory=list)
    """Diagnostics and reporters that broke and were disabled."""

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which the model runs."""
        is_bfloat16 = self.config.compute == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=is_bfloat16)

    @property
    def reports_dir(self) -> Path:
        """Where reporters write."""
        return self.directory / "reports"

    @contextmanager
    def probe(self) -> Iterator[None]:
        """Let the model be run and differentiated, and put everything back afterwards.

        Random states, quantizers' scales and counters, buffers, training mode and ``.grad``
        are restored, so that looking changes no weight.
        """
        parameters = list(self.model.parameters())
        grads = [p.grad for p in parameters]
        owners = [m for m in self.model.modules() if not isinstance(m, torch.jit.ScriptModule)]
        buffers = [(m, dict(m._buffers)) for m in owners]
        values = [(b, b.detach().clone()) for b in self.model.buffers()]
        modes = [(m, m.training) for m in self.model.modules()]
        random = random_state(self.device)
        for p in parameters:
            p.grad = None
        try:
            with self.quantization.frozen():
                yield
        finally:
            set_random_state(random, self.device)
            for p, g in zip(parameters, grads, strict=True):
                p.grad = g
            for module, own in buffers:
                if list(map(id, module._buffers.values())) != list(map(id, own.values())):
                    module._buffers.clear()  # the model put others in their places
                    module._buffers.update(own)
            for buffer, value in values:
                # By way of data: a backward pass that waits for the buffer sees it unchanged.
                buffer.data.copy_(value)
            for module, mode in modes:
                module.training = mode


@define
class Progress:
    """What has become of the run so far: plain data, kept in checkpoints."""

    collapses: list[dict[str, Any]] = field(factory=list)
    evaluation: dict[str, Any] = field(factory=dict)
    """The last one: step, val_loss, val_loss_float32."""
    best: float = math.inf
    discarded: int = 0
    """Steps without an update."""
    has_anomaly: bool = False
    is_overflowing: bool = False
    scales: dict[str, float] = field(factory=dict)
    """Of stored weights, by parameter, when they were last read."""
    stall_rates: dict[str, float | None] = field(factory=dict)
    """Of the last recorded update: stored, view and lost (`altcore.engine.stall`); None where there
    is none."""

    def note_stall(self, line: Mapping[str, Any], log_interval: int) -> None:
        """Keep the stall rates of a line of metrics, unless it was recorded for a diagnostic."""
        if line["step"] % log_interval == 0:
            kinds = ("stored", "view", "lost")
            self.stall_rates = {kind: line.get(f"{kind}_stall_rate") for kind in kinds}

    def summary(self) -> dict[str, Any]:
        """Return its part of the run's summary."""
        first = self.collapses[0] if self.collapses else {}
        return {
            "val_loss": self.evaluation.get("val_loss"),
            "val_loss_float32": self.evaluation.get("val_loss_float32"),
            "best_val_loss": self.best if math.isfinite(self.best) else None,
            "discarded": self.discarded,
            "collapses": self.collapses,
            "failure_step": first.get("step"),
            "failure_reason": first.get("reason"),
        }


@frozen(eq=False)
class Snapshot:
    """A recent state of the run, on the device."""

    step: int
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    quantization: Mapping[str, Any]

    def is_finite(self) -> bool:
        """Whether every weight is finite; a host read, made only when a rollback asks."""
        flags = [torch.isfinite(w).all() for w in self.weights.values() if w.is_floating_point()]
        return bool(torch.stack(flags).all()) if flags else True


def take_snapshot(run: Run, step: int) -> Snapshot:
    """Copy model, optimizer, recipe and quantization state, as they are after ``step``."""
    return Snapshot(
        step,
        _copy(run.model.state_dict()),
        _copy(run.optimizer.state_dict()),
        run.quantization.state_dict(),
    )


def restore_snapshot(run: Run, steps: int) -> int:
    """Restore the newest snapshot verified finite that is at least ``steps`` old.

    Returns the step it was taken at. Raises `AltcoreError` where none is.
    """
    for snapshot in reversed(run.snapshots):
        if snapshot.step <= run.step - steps and snapshot.is_finite():
            run.quantization.load_state_dict(snapshot.quantization, snapshot.weights)
            run.optimizer.load_state_dict(_copy(snapshot.optimizer))
            while run.snapshots and run.snapshots[-1].step > snapshot.step:
                run.snapshots.pop()
            return snapshot.step
    kept = ", ".join(str(s.step) for s in run.snapshots) or "none (a plugin must need 'snapshots')"
    raise AltcoreError(
        f"no finite snapshot is at least {steps} steps old at step {run.step}: kept are {kept}"
    )


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {k: _copy(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_copy(v) for v in value]
    return value


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the schedule's rate at ``step`` (from 1): linear warm-up, then half a cosine."""
    peak, low = config.learning_rate, config.learning_rate * config.min_lr_ratio
    if step <= config.warmup_steps:
        return peak * step / (config.warmup_steps + 1)
    share = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    return low + 0.5 * (1 + math.cos(math.pi * min(1.0, share))) * (peak - low)
