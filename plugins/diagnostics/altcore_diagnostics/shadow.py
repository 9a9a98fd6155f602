"""The diagnostic ``shadow``: what the same step would have been without quantization."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, cast

import attrs
import torch
from attrs.validators import ge
from torch import Tensor, nn

from altcore.plugin import DeferredErrors, hookimpl, inner_products, setting
from altcore_diagnostics.shadow_gradients import (
    LayerSums,
    Watch,
    fresh_batch,
    gradient_pair,
    is_quantized,
    join,
    layer_sums,
    least,
    mean,
    own_forward,
    quantized,
    unquantized,
)

if TYPE_CHECKING:
    from altcore.plugin import Run, Step


@attrs.define(eq=False)
class Shadow:
    """The run's step against that of a shadow: the same weights and batch, products in float32.

    Both are of the last micro-batch of the step, on the weights before the optimizer; the losses
    are the workload's own, without loss scale. The quantized pass is the step's own if
    another one would make the same (nothing is drawn at random, no scale is delayed, no batches
    are accumulated, the model is not compiled); else it is computed anew, in a probe, as the shadow
    is. Measures:

    - ``cosine/layer.name``: cosine of the angle between the layer's weight gradients in the two,
      in -1..1; ``cosine_mean`` and ``cosine_min`` over layers, each counting once. 0 if one of
      the two gradients is zero; if both are, NaN and left out of mean and min;
    - ``norm_ratio/layer.name``: norm of the quantized weight gradient over that of the unquantized;
      ``norm_ratio``: the same of all layers' gradients taken as one vector;
    - ``loss_gap``: quantized minus unquantized loss of the batch, in the workload's unit;
    - ``injected/layer.name``: root mean square (RMS) error of the layer's output, over the RMS of
      the exact output, where its inputs are those of the shadow and only its own operands are
      quantized: what this layer adds. ``injected_max``: the largest of a layer;
    - ``accumulated/layer.name``: RMS difference of the layer's outputs in the two forward passes of
      the whole model, over the RMS of the exact output: what has come together up to here.
      ``accumulated_max``: the largest of a layer.

    Gradients are those of layers that own a trained parameter of two or more dimensions, quantized
    or not; a tied parameter counts in the first layer that owns it. Errors are those of layers that
    the recipe quantizes and that the forward pass calls; of several calls of a layer the squares
    add up. Attention's injected error is taken without its dropout, and with the layers inside it
    unquantized. If the exact output is all zeros and so is its error, the layer's error is NaN
    and left out of the largest. What is not finite makes the aggregates NaN.

    Weights stored on a grid are the same grid values in both: the error of *being stored* is in no
    measure here. Stochastic rounding draws other random bits than the step did; delayed scales, and
    buffers that the model goes on from, are those after the step's own forward and backward passes.
    In a run without quantization there is no measure.

    The inputs and outputs of quantized layers are kept until all is compared. What ``noise-floor``
    needs too is computed once.
    """

    interval: int = setting(50, help="steps between measurements", validator=ge(1))

    @hookimpl
    def watch_forward(self, run: Run, step: Step) -> AbstractContextManager[None] | None:
        """Look at the layers in the step's own forward pass."""
        return own_forward(run, step, self._errors(run, step)) if is_quantized(run) else None

    def _errors(self, run: Run, step: Step) -> LayerErrors:
        return cast(LayerErrors, join(step, self, lambda: LayerErrors(run)))

    @hookimpl
    def post_backward(self, run: Run, step: Step) -> dict[str, Tensor] | None:
        """Compare this step with its shadow, before the weights move."""
        if not is_quantized(run):
            return None
        errors = self._errors(run, step)
        pair = gradient_pair(run, step)
        measures = {"loss_gap": pair.quantized_loss.double() - pair.exact_loss.double()}
        if (sums := layer_sums(run, step)) is not None:
            measures |= gradient_measures(sums)
        if run.quantization.modules:
            with torch.no_grad():
                measures |= errors.measures(step)
        return measures


def gradient_measures(sums: LayerSums) -> dict[str, Tensor]:
    """Return cosines and norm ratios, 0-dim, of what `layer_sums` found."""
    lengths = sums.quantized.sqrt() * sums.exact.sqrt()
    is_one_zero = (sums.quantized == 0) != (sums.exact == 0)
    cosine = torch.where(is_one_zero, 0.0, (sums.product / lengths).clamp(-1, 1))
    known = ~((sums.quantized == 0) & (sums.exact == 0))
    ratio = (sums.quantized / sums.exact).sqrt()
    measures = {
        "cosine_mean": mean(cosine, known),
        "cosine_min": least(cosine, known),
        "norm_ratio": (sums.quantized.sum() / sums.exact.sum()).sqrt(),
    }
    measures |= {f"cosine/{n}": c for n, c in zip(sums.layers, cosine, strict=True)}
    return measures | {f"norm_ratio/{n}": r for n, r in zip(sums.layers, ratio, strict=True)}


# Errors of layers' outputs --------------------------------------------------------------------


@attrs.define(eq=False)
class Kept:
    """A tensor, to be looked at later."""

    tensor: Tensor
    version: int
    """Its version: how often it had been written to."""

    @property
    def is_intact(self) -> bool:
        """Whether it is what it was."""
        return self.tensor._version == self.version


@attrs.define(eq=False)
class Call:
    """One call of a layer in the shadow's forward pass, and what it returned."""

    args: list[Any]
    """Tensors are `Kept`."""
    kwargs: dict[str, Any]
    output: Kept

    @property
    def is_intact(self) -> bool:
        """Whether the model wrote to nothing of it."""
        values = (self.output, *self.args, *self.kwargs.values())
        return all(v.is_intact for v in values if isinstance(v, Kept))

    def repeat(self, module: nn.Module) -> Tensor | None:
        """Call the layer again."""
        kwargs = {key: _given(value) for key, value in self.kwargs.items()}
        return _tensor(module(*map(_given, self.args), **kwargs))


@attrs.define(eq=False)
class LayerErrors(Watch):
    """Watches the quantized layers in the two passes, and says how far they are apart."""

    run: Run
    saw_own: bool = attrs.field(init=False, default=False)
    outputs: dict[str, list[Kept]] = attrs.field(init=False, factory=dict)
    """Of the quantized forward pass, by layer."""
    calls: dict[str, list[Call]] = attrs.field(init=False, factory=dict)
    """Of the shadow's forward pass, by layer."""
    accumulated: dict[str, Tensor] = attrs.field(init=False, factory=dict)
    """For each layer the `inner_products` of its outputs in the two."""
    is_copying: bool = attrs.field(init=False, default=False)
    """Whether all that is kept is a copy, as the model goes on in what layers take or return."""
    is_done: bool = attrs.field(init=False, default=False)
    deferred: DeferredErrors = attrs.field(init=False, factory=DeferredErrors)
    """Keeps the first error for `measures`: others look at the same passes."""

    @contextmanager
    def quantized(self) -> Iterator[None]:
        """Within, keep what every call of the quantized layers returns."""
        self.outputs.clear()

        def keep(name: str, args: Any, kwargs: Any, output: Any) -> None:
            if (y := _tensor(output)) is not None:
                self.outputs.setdefault(name, []).append(self._kept(y))

        with _watched(self.run, self.deferred.guard(keep)):
            yield

    def is_intact(self) -> bool:
        """Whether the model wrote to no output of the quantized pass."""
        return all(y.is_intact for own in self.outputs.values() for y in own)

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Within, compare every call with the quantized one, and keep it."""
        self.calls.clear()
        self.accumulated.clear()
        is_intact = self.is_intact()
        rest = {name: iter(made) for name, made in self.outputs.items()}

        def compare(name: str, args: Any, kwargs: Any, output: Any) -> None:
            if (y := _tensor(output)) is None:
                return
            quantized = next(rest.get(name, iter(())), None)
            if quantized is not None:
                _add(self.accumulated, name, quantized.tensor, y)
            given = {key: self._kept(value) for key, value in kwargs.items()}
            call = Call([self._kept(value) for value in args], given, self._kept(y))
            self.calls.setdefault(name, []).append(call)

        with _watched(self.run, self.deferred.guard(compare)):
            yield
        self.outputs.clear()
        self.is_done = is_intact and all(c.is_intact for own in self.calls.values() for c in own)

    def _kept(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        tensor = value.detach().clone() if self.is_copying else value.detach()
        return Kept(tensor, tensor._version)

    def measures(self, step: Step) -> dict[str, Tensor]:
        """Return injected and accumulated errors; runs the two passes if they were not seen."""
        run = self.run
        if not self.is_done:
            self.is_copying = True
            with quantized(run), self.quantized():
                run.loss(fresh_batch(step))
            with unquantized(run), self.exact():
                run.loss(fresh_batch(step))
        if self.deferred.error is not None:
            raise self.deferred.error
        measures = {}
        found = {"injected": self.injected(), "accumulated": self.accumulated}
        self.calls.clear()  # the watch is there for as long as the step
        for kind, layers in found.items():
            if layers:
                _, signal, _, error = torch.stack(list(layers.values())).unbind(1)
                relative = (error / signal).sqrt()
                known = ~((error == 0) & (signal == 0))
                measures[f"{kind}_max"] = -least(-relative, known)
                measures |= {f"{kind}/{n}": r for n, r in zip(layers, relative, strict=True)}
        return measures

    def injected(self) -> dict[str, Tensor]:
        """Return for each layer, on exact inputs, the `inner_products` of its two outputs."""
        run, sums = self.run, {}
        with quantized(run):
            for name, made in self.calls.items():
                module = run.quantization.modules[name]
                has_parts = _has_parts(run, name)
                if has_parts:
                    module.eval()
                with _unquantized_inside(run, module):
                    for call in made:
                        exact: Tensor | None = call.output.tensor
                        if has_parts:
                            with run.quantization.off():
                                exact = call.repeat(module)
                        _add(sums, name, call.repeat(module), exact)
        return sums


def _has_parts(run: Run, name: str) -> bool:
    return any(True for _ in run.quantization.modules[name].children())


def _given(value: Any) -> Any:
    return value.tensor if isinstance(value, Kept) else value


def _add(
    sums: dict[str, Tensor],
    name: str,
    y: Tensor | None,
    exact: Tensor | None,
) -> None:
    """Add the `inner_products` of two outputs to a layer's."""
    if y is None or exact is None or y.shape != exact.shape:
        return  # it was routed otherwise: there is nothing to compare
    own = inner_products(y, exact)
    sums[name] = sums[name] + own if name in sums else own


def _tensor(output: Any) -> Tensor | None:
    """The first floating-point tensor that a layer returns."""
    parts = output if isinstance(output, tuple | list) else [output]
    return next((t for t in parts if isinstance(t, Tensor) and t.is_floating_point()), None)


@contextmanager
def _watched(run: Run, tell: Any) -> Iterator[None]:
    """Within, ``tell(name, args, kwargs, output)`` at each call of a quantized layer."""

    def hook(name: str) -> Any:
        @torch.no_grad()
        def call(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            tell(name, args, kwargs, output)

        return call

    with ExitStack() as stack:
        for name, module in run.quantization.modules.items():
            handle = module.register_forward_hook(hook(name), with_kwargs=True)
            stack.callback(handle.remove)
        yield


@contextmanager
def _unquantized_inside(run: Run, module: nn.Module) -> Iterator[None]:
    """Within, the quantized layers inside ``module`` run unquantized, and it itself does not."""
    entered: list[Any] = []

    def enter(*_: Any) -> None:
        entered.append(run.quantization.off())
        entered[-1].__enter__()

    def leave(*_: Any) -> None:
        entered.pop().__exit__(None, None, None)

    own = set(module.modules()) - {module}
    with ExitStack() as stack:
        for inner in own.intersection(run.quantization.modules.values()):
            stack.callback(inner.register_forward_pre_hook(enter).remove)
            stack.callback(inner.register_forward_hook(leave, always_call=True).remove)
        yield
