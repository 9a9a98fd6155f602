"""Captures: tensors that plugins need, each taken once for all who want it, when one is due."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from attrs import define, field
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from altcore.engine.state import Step


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of every trainable parameter, by name."""
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of every gradient, by parameter name."""
    return {n: p.grad.detach().clone() for n, p in model.named_parameters() if p.grad is not None}


@define(eq=False)
class Deferred:
    """Functions that only look on while the model runs: their first error waits until it has.

    >>> seen = []
    >>> with Deferred() as deferred:
    ...     look = deferred.guard(lambda x: seen.append(1 / x))
    ...     look(2), look(0), look(4)
    Traceback (most recent call last):
    ZeroDivisionError: division by zero
    >>> seen
    [0.5]
    """

    error: Exception | None = field(init=False, default=None)

    def guard(self, look: Callable[..., Any]) -> Callable[..., None]:
        """Return the function, which returns nothing and is called no more after an error."""

        def call(*args: Any, **kwargs: Any) -> None:
            if self.error is None:
                try:
                    look(*args, **kwargs)
                # Whatever it is, the model goes on.
                except Exception as error:
                    self.error = error

        return call

    def __enter__(self) -> Deferred:
        self.error = None
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self.error is not None:
            raise self.error


@define(eq=False)
class LayerTaps:
    """Forward hooks that keep layers' inputs and the gradients of their outputs."""

    layers: Mapping[str, nn.Module]
    _handles: list[RemovableHandle] = field(factory=list)

    def attach(self, step: Step, needs: Iterable[str]) -> None:
        """Keep what is needed of ``step``; the last micro-batch's stays."""
        wanted = set(needs)
        if "activations" in wanted:
            step.activations = {}
        if "output_gradients" in wanted:
            step.output_gradients = {}
        if step.activations is None and step.output_gradients is None:
            return
        for name, module in self.layers.items():
            self._handles.append(module.register_forward_hook(_tap(step, name)))

    def detach(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def _tap(step: Step, name: str) -> Any:
    def keep(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if step.activations is not None and inputs and isinstance(inputs[0], Tensor):
            step.activations[name] = inputs[0].detach()
        kept = step.output_gradients
        if kept is not None and isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(lambda gradient: kept.__setitem__(name, gradient.detach()))

    return keep
