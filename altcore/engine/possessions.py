"""All that an observer could reach and may not change, of one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from attrs import fields
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from altcore.engine.checked_workload import CheckedWorkload
from altcore.engine.custom_workload import own_workload
from altcore.engine.process_possessions import of_process
from altcore.engine.state import Run, Step
from altcore.engine.trespass import (
    PLAIN,
    Bindings,
    Configuration,
    Entries,
    Names,
    Possession,
    TensorValue,
    Value,
    attribute,
)
from altcore.quantization import Quantization

RUN = ("config", "directory", "device", "workload", "model", "optimizer", "quantization", "epoch")
STEP = (
    *("index", "epoch", "learning_rate", "is_recorded", "items", "micro", "batch", "discarded"),
    *("mean_loss", "grad_norm", "measures", "weights_before", "weights_proposed", "gradients"),
    *("gradients_final", "activations", "output_gradients"),
)
HANDED_OUT = STEP[STEP.index("mean_loss") :]
"""Those that are tensors, or hold some, and that the engine or another plugin reads later."""
SNAPSHOT = ("weights", "buffers", "optimizer", "quantization")
MOVES = {"calls", "last_step", "has_learned", "is_coverage_told", "_at_first_backward"}
"""Of the quantization what a probe moves; the random bits that depend on it have their own."""


def possessions(run: Run, step: Step | None, kind: str, *, by_value: bool) -> Iterator[Possession]:
    """Yield what an observer of this ``kind`` may not change, as it is now.

    ``by_value`` copies every tensor, so that a write past its version is found, and put back.
    """
    yield from of_process(run.device, kind)
    yield from _of_run(run, by_value)
    yield from _of_workload(run.workload)
    if step is not None:
        yield from (attribute(f"step.{name}", step, name) for name in STEP)
        yield from _tensors("the batch", step.batch, by_value)
        for name in HANDED_OUT:
            yield from _tensors(f"step.{name}", getattr(step, name), by_value)
        yield from _tensors("step.loss_scale", step.loss_scale, by_value)
        if isinstance(step.loss, Tensor):
            yield from _hooks("the hooks of the loss", step.loss, by_value)
    yield from _of_modules(run.model)
    for name, p in run.model.named_parameters():
        yield TensorValue(f"weight {name}", p, by_value=by_value)
        yield attribute(f"the gradient of {name}", p, "grad")
        if p.grad is not None:
            yield TensorValue(f"the gradient of {name}", p.grad, by_value=by_value)
        yield from _hooks(f"the hooks of weight {name}", p, by_value)
    for name, b in run.model.named_buffers():
        # A probe writes to them, and puts them back; batch norms of torch write past the version.
        yield TensorValue(f"buffer {name}", b, by_value=True)
    yield from _of_optimizer(run, by_value)
    yield from _of_quantization(run.quantization, by_value)


def _of_run(run: Run, by_value: bool) -> Iterator[Possession]:
    yield Configuration(run.config)
    yield from (attribute(f"run.{name}", run, name) for name in RUN)
    yield Entries("run.degraded", run.degraded)
    yield from _tensors("run.shifts", run.shifts, by_value)
    yield Entries("run.snapshots", run.snapshots)
    for snapshot in run.snapshots:
        for name in SNAPSHOT:
            yield from _tensors("run.snapshots", getattr(snapshot, name), by_value)


def _of_workload(workload: Any) -> Iterator[Possession]:
    yield Entries("the workload's facts", workload.facts, says_which=True)
    own = own_workload(workload)
    if hasattr(own, "__dict__"):
        yield ModuleAttributes("the workload", own)
    for cls in dict.fromkeys((CheckedWorkload, *_classes(workload), *_classes(own))):
        yield Names(cls)


def _classes(thing: Any) -> list[type]:
    """Return the classes that a thing has its methods of."""
    return [cls for cls in type(thing).__mro__ if cls is not object]


def _tensors(label: str, held: Any, by_value: bool) -> Iterator[Possession]:
    """Yield tensors, and the dictionaries and lists that hold them, at every depth."""
    if isinstance(held, Tensor):
        yield TensorValue(label, held, by_value=by_value)
    elif isinstance(held, dict | list):
        yield Entries(label, held)
    if isinstance(held, Mapping):
        held = list(held.values())
    if isinstance(held, list | tuple):
        for part in held:
            yield from _tensors(label, part, by_value)


def _of_modules(model: nn.Module) -> Iterator[Possession]:
    classes: dict[type, None] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        classes |= dict.fromkeys(_classes(module))
        place = f"module {name}" if name else "the model"
        for key, held in vars(module).items():
            if isinstance(held, dict) and key.startswith("_"):
                is_hooks = "hooks" in key
                label = f"the hooks of {place}" if is_hooks else f"{key[1:]} of {place}"
                yield Entries(label, held, of_pass=is_hooks)
        yield ModuleAttributes(place, module)
    for cls in classes:
        yield Names(cls)


class ModuleAttributes(Bindings):
    """A module's mode, its class, whether its calls are patched, and its numbers if torch wrote it.

    Models may keep numbers of their own that change when they run, as in a probe.
    """

    def _now(self, owner: nn.Module) -> dict[str, Any]:
        is_torchs = type(owner).__module__.startswith("torch.nn")
        return {
            "__class__": type(owner),
            **{
                key: value
                for key, value in vars(owner).items()
                if key == "training" or callable(value) or (is_torchs and isinstance(value, PLAIN))
            },
        }

    def _changed(self) -> list[str]:
        now, before = self._now(self._owner), self._before
        return [k for k in before | now if k not in before or k not in now or now[k] != before[k]]


def _hooks(label: str, tensor: Tensor, by_value: bool) -> Iterator[Possession]:
    for name in ("_backward_hooks", "_post_accumulate_grad_hooks"):
        held = getattr(tensor, name, None)
        if held is None:
            yield NoHooks(label, tensor, name)
        else:
            yield Entries(label, held, of_pass=True)
    # To look at the hooks of a node leaves an empty mapping in it: only where it is asked for.
    if by_value and tensor.requires_grad:
        node = get_gradient_edge(tensor).node
        yield NodeHooks(label, node.register_hook)
        yield NodeHooks(label, node.register_prehook)


class NodeHooks(Entries):
    """The hooks of a node of the graph, as of that which adds to a weight's gradient."""

    def __init__(self, label: str, register: Callable[..., Any]) -> None:
        self._register = register  # holds the node, which holds the hooks
        handle = register(lambda *_: None)
        handle.remove()
        super().__init__(label, handle.hooks_dict_ref(), of_pass=True)


class NoHooks:
    """A tensor that has no hooks of a kind."""

    of_pass = True

    def __init__(self, label: str, tensor: Tensor, name: str) -> None:
        self.label, self._tensor, self._name = label, tensor, name

    def is_changed(self) -> bool:
        """Whether it has some now."""
        return bool(getattr(self._tensor, self._name, None))

    def put_back(self) -> bool:
        """Remove them."""
        getattr(self._tensor, self._name).clear()
        return True


def _of_optimizer(run: Run, by_value: bool) -> Iterator[Possession]:
    optimizer = run.optimizer
    for name, value in vars(optimizer).items():
        if callable(value) or name in ("param_groups", "state", "defaults"):
            yield attribute(f"the optimizer's {name}", optimizer, name)
        if isinstance(value, dict) and "hooks" in name:
            yield Entries("the optimizer's hooks", value)
    yield Entries("the optimizer's groups", optimizer.param_groups)
    for i, group in enumerate(optimizer.param_groups):
        place = f"the optimizer's group {i}"
        yield Entries(place, group, says_which=True)
        yield Entries(f"the parameters of {place}", group["params"])
        settings = {key: value for key, value in group.items() if key != "params"}
        yield from _tensors(place, settings, by_value)
    yield OptimizerState(optimizer)
    names = {id(p): name for name, p in run.model.named_parameters()}
    for p, state in optimizer.state.items():
        what = repr(p) if isinstance(p, str) else names.get(id(p), "a parameter")
        place = f"the optimizer's state of {what}"
        is_of_one = isinstance(state, dict)
        if is_of_one:
            yield Entries(place, state, says_which=True)
        yield from _tensors(place, list(state.values()) if is_of_one else state, by_value)


class OptimizerState:
    """The keys, parameters or text, of which an optimizer has a state.

    To look one up makes an empty one.
    """

    label = "the optimizer's state"
    of_pass = False

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer, self._before = optimizer, self._now(optimizer)

    @staticmethod
    def _now(optimizer: torch.optim.Optimizer) -> dict[Any, Any]:
        found = optimizer.state.items()
        return {p: state for p, state in found if not (isinstance(state, dict) and not state)}

    def is_changed(self) -> bool:
        """Whether a state is new, gone or another one."""
        now, before = self._now(self._optimizer), self._before
        return now.keys() != before.keys() or any(now[p] is not before[p] for p in now)

    def put_back(self) -> bool:
        """Have the states from before."""
        self._optimizer.state.clear()
        self._optimizer.state.update(self._before)
        return True


def _of_quantization(q: Quantization, by_value: bool) -> Iterator[Possession]:
    parts = [
        *(("the quantization", x) for x in (q, q.context)),
        ("the quantization's clock", q.context.clock),
        ("the quantization's counters", q.counters),
        *((f"the quantizer of {x.site}", x) for x in q.quantizers),
        *((f"stored weight {name}", x) for name, x in q.stored.items()),
        *((f"the quantization of layer {name}", x) for name, x in q.layers.items()),
    ]
    for place, owner in parts:
        for name in (f.name for f in fields(type(owner)) if f.name not in MOVES):
            yield attribute(f"{name} of {place}", owner, name)
            if name not in ("parameter", "counts", "errors"):  # of the model, of the counters
                yield from _tensors(f"{name} of {place}", _tensor_of(owner, name), by_value)
    for quantizer in q.quantizers:
        yield _calls_of(quantizer)
    for name, casts in q.plan.items():
        yield Entries(f"the casts of layer {name}", casts)
    for name, layer in q.layers.items():
        place = f"the quantization of layer {name}"
        for held in (layer.stored, layer.views, layer.seen_as):
            yield Entries(place, held)
    yield Entries("the quantization", q.layers)
    yield Entries("the quantization", q.stored)
    yield Entries("the quantization", q.quantizers)
    yield from _tensors(
        "the quantization's counters", [q.counters.counts, q.counters.errors], by_value
    )


def _calls_of(quantizer: Any) -> Value:
    """The number of a quantizer's calls in this step, which decides its random bits."""

    def read() -> int:
        return quantizer.calls if quantizer.last_step == quantizer.context.clock.step else 0

    def write(calls: int) -> None:
        quantizer.calls, quantizer.last_step = calls, quantizer.context.clock.step

    return Value(f"the calls of the quantizer of {quantizer.site}", read, write)


def _tensor_of(owner: Any, name: str) -> Tensor | None:
    value = getattr(owner, name)
    return value if isinstance(value, Tensor) else None
