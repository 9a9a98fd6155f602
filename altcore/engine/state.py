"""The run and the step, as hooks see them.

The docstrings of attributes and methods are the page docs/run-and-step.md. Each gives type, shape
and unit; after "From:" the point of the step from which the attribute is there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import torch
from attrs import Attribute, define, field
from torch import Tensor, nn

from altcore.config import TrainConfig
from altcore.engine.ambient_modes import run_autocast
from altcore.engine.deferred_errors import is_plugins_turn
from altcore.engine.epochs import Epoch
from altcore.engine.losses import loss_and_measures
from altcore.engine.probe import probing
from altcore.engine.snapshots import Snapshot
from altcore.errors import PluginError, shown
from altcore.quantization import Quantization

T = TypeVar("T")
NO_LOSS = (None, 0, None)
ENGINES_EVENTS = frozenset(
    {
        *("start", "resume", "checkpoint", "end", "nan", "collapse", "verdict", "recipe"),
        *("rollback", "rescale", "degraded"),
    }
)
"""Events that only the engine may emit: what reads a record relies on them."""


class Workload(Protocol):
    """Model, data and loss, as the ``build(seed, device)`` of a workload returns them.

    A workload may also have ``steps_per_epoch``, the micro-batches of one pass over its training
    split; ``validation_batches``, the batches of a finite validation split; ``items(batch)``,
    how many items a batch has, if not all have ``items_per_batch``; and ``shard(batch, rank,
    world_size)``, a rank's share of a micro-batch, if the items are not along the first dimension
    of each of its tensors.
    """

    @property
    def model(self) -> nn.Module:
        """The model, in float32, on the device."""

    @property
    def items_per_batch(self) -> int:
        """Items in a micro-batch."""

    @property
    def item(self) -> str:
        """The plural by which an item is called, as ``tokens``."""

    @property
    def facts(self) -> Mapping[str, str | int | float]:
        """Facts of data and model for the record; the same for the same data."""

    def batch(self, split: str, step: int, micro: int) -> Any:
        """Return a micro-batch: a pure function of seed, ``split`` (train, val), step and micro.

        If the workload has ``steps_per_epoch``, ``step`` numbers the micro-batches of all epochs,
        from 1, and ``micro`` is 0. Validation batches count from 0.
        """

    def loss(self, model: nn.Module, batch: Any) -> Tensor | tuple[Tensor, Mapping[str, Tensor]]:
        """Return the loss of a batch, 0-dim, in the workload's unit; or the loss and measures.

        Measures are 0-dim tensors by name, such as ``accuracy``: means over the batch. Plugins call
        ``run.loss(batch)``.
        """


def _count(step: Step, attribute: Attribute[Tensor | None], value: Tensor | None) -> Tensor | None:
    step._times_set += 1
    return value


def _is_kept(run: Run, attribute: Attribute[Any], value: Any) -> Any:
    raise PluginError(f"run.{attribute.name} cannot be replaced by {shown(value)}")


@define(eq=False)
class Step:
    """One step. Tensors stay on the device; gradients are ``p.grad`` of the model's parameters."""

    index: int
    """The number of steps whose batches have been drawn, from 1. It never runs backwards.

    From: the step's beginning.
    """
    epoch: float | None = None
    """Epochs whose batches have been drawn when the step is over: 2.5 in the middle of the third.
    None if the workload counts none.

    From: the step's beginning.
    """
    learning_rate: float = 0.0
    """Of this step: the schedule's rate times ``run.lr_scale``.

    From: the step's beginning.
    """
    is_recorded: bool = False
    """Whether the step gets a line in metrics.jsonl: at ``log_interval``, if a plugin measures, and
    if the run is to end with it.

    From: the first pass.
    """
    items: tuple[int, ...] = ()
    """The number of items in each micro-batch, those of all ranks. By its share of them a
    micro-batch counts in the step's loss, gradients and measures.

    From: the first micro-batch's beginning.
    """
    micro: int = 0
    """The current micro-batch, from 0; after the last one ``gradient_accumulation_steps`` - 1.

    From: each micro-batch's beginning.
    """
    batch: Any = None
    """The current micro-batch, as the workload gave it, or this rank's share of it; after the
    passes the last one.

    From: each micro-batch's beginning.
    """
    loss: Tensor | None = field(default=None, on_setattr=_count)
    """The loss of ``batch``, 0-dim, in the workload's unit, without the loss scale. Only
    ``pre_backward`` may replace it.

    From: ``pre_backward``.
    """
    loss_scale: float | Tensor = 1.0
    """The factor of the loss before backward, a number or 0-dim. Only ``pre_backward`` of
    micro-batch 0 may set it. The engine divides the gradients by it.

    From: ``pre_backward``.
    """
    mean_loss: Tensor | None = None
    """The mean loss over the items of all micro-batches and ranks, 0-dim: that of metrics.jsonl.

    From: ``post_backward``.
    """
    grad_norm: Tensor | None = None
    """L2 norm of all raw gradients, 0-dim: unscaled, before any clipping.

    From: ``post_backward``.
    """
    measures: dict[str, dict[str, Any]] = field(init=False, factory=dict)
    """The measures of the plugins in this step, by plugin and measure, on the device. A plugin is
    there only if it was due, and not if it was disabled. See ``requires``.

    From: ``post_backward``, each plugin's as soon as it has measured.
    """
    discarded: bool = False
    """Whether the update was discarded: the step was not finite, or an action said so.

    From: the arbitration after ``on_nan``.
    """
    weights_before: Mapping[str, Tensor] | None = None
    """A copy of each trained parameter before the optimizer, by name. Need ``weights_before``.

    From: ``post_step``.
    """
    weights_proposed: Mapping[str, Tensor] | None = None
    """A copy of each trained parameter after the optimizer, before stored formats are put back on
    their grids, by name. Need ``weights_proposed``.

    From: ``post_step``.
    """
    gradients: Mapping[str, Tensor] | None = None
    """A copy of each raw gradient, unscaled, before any clipping, by parameter name. Need
    ``gradients``.

    From: ``post_backward``.
    """
    gradients_final: Mapping[str, Tensor] | None = None
    """A copy of each gradient as the optimizer gets it, by parameter name. Need
    ``gradients_final``.

    From: ``on_nan``.
    """
    activations: dict[str, Tensor] | None = None
    """The first input of each quantized layer in the last micro-batch, by layer name, in the shape
    that the layer got; not copied. Need ``activations``.

    From: ``pre_backward``.
    """
    output_gradients: dict[str, Tensor] | None = None
    """The gradient of each quantized layer's output in the last micro-batch, by layer name, times
    ``loss_scale`` and its share of ``items``; not copied. Need ``output_gradients``.

    From: ``post_backward``.
    """
    _times_set: int = field(init=False, default=0)
    _scaled_by: list[str] = field(init=False, factory=list)
    """The plugins that set the loss scale."""
    _shared: dict[Hashable, Any] = field(init=False, factory=dict)
    _kept_loss: tuple[Tensor | None, int, Tensor | None] = field(init=False, default=NO_LOSS)
    """The loss as the engine knows it: the tensor, its version, and a copy."""

    def _keep_loss(self) -> None:
        """Copy the loss, unless that was done since it changed, so that it can be put back."""
        kept, version, _ = self._kept_loss
        loss = self.loss
        if loss is not kept or (loss is not None and loss._version != version):
            self._kept_loss = NO_LOSS if loss is None else (loss, loss._version, loss.clone())

    def place(self) -> dict[str, float]:
        """Return ``step``, and ``epoch`` if the workload counts any: how lines of metrics begin.

        From: the step's beginning.
        """
        return {"step": self.index, **({} if self.epoch is None else {"epoch": self.epoch})}

    @property
    def is_loss_replaced(self) -> bool:
        """Whether a plugin replaced a micro-batch's loss.

        From: ``pre_backward``.
        """
        return self._times_set > self.micro + 1

    def shared(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what ``make()`` returned for this ``key`` first: made once a step, for all.

        For what several plugins need of one step. It is gone with the step. A function or a class
        of your own is a good key: no other distribution has it.

        From: the step's beginning.
        """
        if key not in self._shared:
            self._shared[key] = make()
        return cast(T, self._shared[key])


@define(eq=False)
class Run:
    """One run. Everything is there from ``run_start`` on."""

    config: TrainConfig
    """The configuration, resolved; see [configuration.md](configuration.md). It never changes."""
    directory: Path
    """The run's directory, with metrics.jsonl and events.jsonl. Write below ``reports_dir``."""
    device: torch.device
    """The device of the model, its gradients and all measures."""
    workload: Workload
    """Model, data and loss; see [Workload](#workload)."""
    model: nn.Module
    """The model that is trained, its layers quantized in place."""
    optimizer: torch.optim.Optimizer
    """The optimizer. The engine sets ``lr`` of its parameter groups in each step."""
    quantization: Quantization
    """Formats, scales and counters; see [Quantization](#quantization)."""
    _on_event: Callable[[Run, Mapping[str, Any]], None]
    step: int = 0
    """The index of the last step begun; 0 before the first."""
    lr_scale: float = 1.0
    """The product of all `ScaleLearningRate` actions so far."""
    snapshots: deque[Snapshot] = field(factory=deque)
    """Recent states, oldest first, each with the ``step`` after which it was taken. Only `Rollback`
    restores one. Need ``snapshots``; empty otherwise."""
    shifts: list[dict[str, Any]] = field(factory=list, on_setattr=_is_kept)
    """Changes of format so far: ``step``, ``plugin``, ``from``, ``to``, ``reason``."""
    reports: list[str] = field(factory=list, on_setattr=_is_kept)
    """Reports that were written, as paths in ``directory``. A reporter appends its own."""
    degraded: list[str] = field(factory=list, on_setattr=_is_kept)
    """Names of the diagnostics and reporters that broke and were disabled."""
    rank: int = 0
    """The number of this process among those that train together. Reporters are called on rank 0
    only, which alone writes."""
    world_size: int = 1
    """How many processes train together; each has its share of every micro-batch."""
    epoch: Epoch | None = None
    """An epoch in micro-batches and steps; see [Epoch](#epoch). None if the workload counts none.
    """

    def loss(self, batch: Any) -> Tensor:
        """Return the workload's loss of a batch, 0-dim, without measures."""
        return loss_and_measures(self.workload, self.model, batch)[0]

    def emit(self, kind: str, **data: Any) -> None:
        """Write a line to events.jsonl, with the step, and tell it to ``on_event``.

        ``kind`` is text of one line. ``step`` and ``event`` are the line's own keys, and cannot be
        in ``data``.
        """
        if not (isinstance(kind, str) and kind.strip() and kind.isprintable()):
            problem = f"the event's kind is {shown(kind)}: it has to be a line of text"
            raise PluginError(problem)
        taken = next((key for key in ("step", "event") if key in data), None)
        if taken:
            raise PluginError(f"the event {kind!r} cannot hold {taken!r}: each line has its own")
        if kind in ENGINES_EVENTS and is_plugins_turn():
            raise PluginError(f"the event {kind!r} is the engine's own")
        self._write_event(kind, **data)

    def _write_event(self, kind: str, **data: Any) -> None:
        """Do what `emit` does, unchecked."""
        self._on_event(self, {"step": self.step, "event": kind, **data})

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which the model runs: bfloat16 autocast, or none."""
        return run_autocast(self.config.compute, self.device)

    @property
    def reports_dir(self) -> Path:
        """The folder below ``directory`` in which reporters write."""
        return self.directory / "reports"

    @contextmanager
    def probe(self) -> Iterator[None]:
        """Let the model be run and differentiated, and put everything back afterwards.

        Random states, quantizers' scales and counters, buffers, training mode and ``.grad``
        are restored, so that looking changes no weight.
        """
        with probing(self.model, self.quantization, self.device):
            yield
