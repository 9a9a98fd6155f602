"""The step's passes with and without quantization, which several diagnostics compare.

Both have the same weights and the same batch, and begin with one random state: dropout drops the
same elements in both if both make the same calls. (A recipe that quantizes attention's products
computes attention by other calls than torch's own, so its dropout differs.)

The quantized pass is the step's own if another one would only repeat it; to see it, join before the
step's forward pass. Otherwise it is made anew, in a probe, as the unquantized one is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import attrs
import torch
from torch import Tensor

from altcore.plugin import inner_products, random_state
from altcore_diagnostics.eager import eagerly

if TYPE_CHECKING:
    from altcore.plugin import Run, Step


@attrs.frozen(eq=False)
class GradientPair:
    """Losses and weight gradients of one batch, quantized and not."""

    quantized: dict[str, Tensor]
    """By parameter name; trained parameters of two or more dimensions, a tied one once."""
    exact: dict[str, Tensor]
    quantized_loss: Tensor
    exact_loss: Tensor


@attrs.frozen(eq=False)
class LayerSums:
    """The sums behind cosines and norms, float64, an entry for each layer."""

    layers: list[str]
    quantized: Tensor
    """Squares of the quantized gradient."""
    exact: Tensor
    """Squares of the unquantized gradient."""
    product: Tensor
    """Products of the one with the other."""
    error: Tensor
    """Squares of their difference."""


@attrs.define(eq=False)
class DrawnBatch:
    """A copy of the micro-batch as it was before the step's own forward pass."""

    batch: Any = None
    copy: Any = None
    versions: list[int] = attrs.field(factory=list)
    """The version of each tensor of ``batch``: how often it had been written to."""

    def keep(self, batch: Any) -> None:
        """Copy a micro-batch, once."""
        if self.batch is not batch:
            self.batch, self.copy, self.versions = batch, _copy(batch), _versions(batch)


class Watch:
    """An observer of the two forward passes, for plugins that need more than gradients."""

    saw_own: bool = False
    """Whether the quantized pass that was seen is the step's own, and stands for any other."""

    def quantized(self) -> AbstractContextManager[Any]:
        """Return the context of the quantized forward pass; of several, the last one counts."""
        return nullcontext()

    def is_intact(self) -> bool:
        """Whether what was seen of the quantized pass is still what it was."""
        return True

    def exact(self) -> AbstractContextManager[Any]:
        """Return the context of the unquantized forward pass, which comes after the other one."""
        return nullcontext()


def is_quantized(run: Run) -> bool:
    """Whether the run's products differ from float32 ones; otherwise nothing can be compared."""
    q = run.quantization
    return bool(q.modules or q.quantizers) or run.config.compute == "bfloat16"


def join(step: Step, plugin: Any, make: Callable[[], Watch]) -> Watch:
    """Return the watch that a plugin has on the passes of a step, made at the first call.

    It sees nothing if the passes were made before.
    """
    watches = _watches(step)
    if plugin not in watches:
        watches[plugin] = make()
    return watches[plugin]


def _watches(step: Step) -> dict[Any, Watch]:
    """Return those who joined, by plugin."""
    return step.shared(_watches, dict)


@contextmanager
def own_forward(run: Run, step: Step, watch: Watch) -> Iterator[None]:
    """Around the step's own forward pass: let ``watch`` see it, if it can stand for another one."""
    keep_batch(step)
    before, is_repeatable = _state(run), _is_repeatable(run)
    with watch.quantized() if is_repeatable else nullcontext():
        yield
    watch.saw_own = is_repeatable and _is_same(before, _state(run)) and watch.is_intact()


def keep_batch(step: Step) -> None:
    """Copy the micro-batch before the step's own forward pass, for `fresh_batch`; once."""
    step.shared(DrawnBatch, DrawnBatch).keep(step.batch)


def fresh_batch(step: Step) -> Any:
    """Return the last micro-batch as it was drawn: a copy, if the model writes to its batches."""
    drawn = step.shared(DrawnBatch, DrawnBatch)
    if drawn.batch is not step.batch or _versions(step.batch) == drawn.versions:
        return step.batch
    return _copy(drawn.copy)


def gradient_pair(run: Run, step: Step) -> GradientPair:
    """Return both gradients of the last micro-batch's loss, not scaled; computed once a step.

    Ask for it after the step's backward pass and before its optimizer.
    """
    return step.shared(gradient_pair, lambda: _compute(run, step))


def layer_sums(run: Run, step: Step) -> LayerSums | None:
    """Return the `sums_by_layer` of the step's `gradient_pair`; computed once a step."""
    return step.shared(layer_sums, lambda: sums_by_layer(gradient_pair(run, step)))


@contextmanager
def quantized(run: Run) -> Iterator[None]:
    """The run's model as it trains, under a probe."""
    with run.probe(), eagerly(run), run.autocast():
        yield


@contextmanager
def unquantized(run: Run) -> Iterator[None]:
    """The same weights in float32, under a probe."""
    float32 = torch.autocast(run.device.type, enabled=False)
    with run.probe(), eagerly(run), run.quantization.off(), float32:
        yield


@torch.enable_grad()
def _compute(run: Run, step: Step) -> GradientPair:
    watches = list(_watches(step).values())
    weights = {n: p for n, p in run.model.named_parameters() if p.requires_grad and p.dim() >= 2}
    if watches and all(watch.saw_own for watch in watches) and _is_workloads(step):
        loss = cast(Tensor, step.loss)
        gradients = {n: p.grad for n, p in weights.items() if p.grad is not None}
    else:
        with quantized(run):
            with ExitStack() as stack:
                for watch in watches:
                    stack.enter_context(watch.quantized())
                loss = run.loss(fresh_batch(step))
            gradients = _gradients(loss, weights)
    with unquantized(run):
        with ExitStack() as stack:
            for watch in watches:
                stack.enter_context(watch.exact())
            exact_loss = run.loss(fresh_batch(step))
        exact = _gradients(exact_loss, weights)
    return GradientPair(gradients, exact, loss.detach(), exact_loss.detach())


def _is_repeatable(run: Run) -> bool:
    """Whether a forward pass after the step's own makes the same, if no random number is drawn."""
    casts = [quantizer.cast for quantizer in run.quantization.quantizers]
    return (
        run.config.gradient_accumulation_steps == 1
        and not run.config.compile
        and all(c.rounding != "stochastic" and c.scaling.kind != "delayed" for c in casts)
        # These change what a backward pass leaves behind, and are not run for another one.
        and not any(p._post_accumulate_grad_hooks for p in run.model.parameters())
    )


def _is_workloads(step: Step) -> bool:
    """Whether the step's loss is still what the workload gave, and its gradients are of that."""
    return (
        not step.is_loss_replaced
        and step.loss is not None
        and step.loss._version == 0
        and isinstance(step.loss_scale, float | int)
        and step.loss_scale == 1
    )


@attrs.frozen(eq=False)
class State:
    """The state that a forward pass changes if it draws random numbers, or has a memory."""

    random: dict[str, Any]
    buffers: list[tuple[Tensor, int]]
    """And how often each was written to."""


def _state(run: Run) -> State:
    return State(random_state(run.device), [(b, b._version) for b in run.model.buffers()])


def _is_same(before: State, after: State) -> bool:
    return (
        len(before.buffers) == len(after.buffers)
        and all(
            a is b and version == other
            for (a, version), (b, other) in zip(before.buffers, after.buffers, strict=True)
        )
        and all(_equal(value, after.random.get(key)) for key, value in before.random.items())
    )


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list):  # a state for each GPU
        return len(a) == len(b) and all(map(_equal, a, b))
    return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)


def _copy(batch: Any) -> Any:
    """Copy the tensors of a batch."""
    if isinstance(batch, Tensor):
        return batch.detach().clone()
    if isinstance(batch, Mapping):
        return {key: _copy(value) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*map(_copy, batch))
    return type(batch)(map(_copy, batch)) if isinstance(batch, list | tuple) else batch


def _versions(batch: Any) -> list[int]:
    """Return the version of each tensor of a batch: how often it was written to."""
    if isinstance(batch, Tensor):
        return [batch._version]
    if isinstance(batch, Mapping):
        return _versions(list(batch.values()))
    return [v for part in batch for v in _versions(part)] if isinstance(batch, list | tuple) else []


def _gradients(loss: Tensor, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    if not weights:
        return {}
    found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    return {n: g for n, g in zip(weights, found, strict=True) if g is not None}


def sums_by_layer(pair: GradientPair) -> LayerSums | None:
    """Sum up squares and products by layer; None if no weight has a gradient.

    The matrices of a layer that owns several count as one vector.
    """
    sums: dict[str, Tensor] = {}
    for name, gradient in pair.quantized.items():
        if name in pair.exact:
            layer = name.rpartition(".")[0] or name
            own = inner_products(gradient, pair.exact[name])
            sums[layer] = sums[layer] + own if layer in sums else own
    if not sums:
        return None
    return LayerSums(list(sums), *torch.stack(list(sums.values())).unbind(1))


def least(values: Tensor, known: Tensor) -> Tensor:
    """Return the smallest of the values that are ``known``, NaN if none is; NaN stays NaN."""
    smallest = torch.where(known, values, torch.inf).min()
    return torch.where(known.any(), smallest, torch.nan)


def mean(values: Tensor, known: Tensor) -> Tensor:
    """Return the mean of the values that are ``known``, NaN if none is."""
    return torch.where(known, values, 0.0).sum() / known.sum()
