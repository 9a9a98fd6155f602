"""Captures: tensors that plugins need, each taken once for all of them, on steps that are due."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
class LayerCaptures:
    """Keeps layers' inputs and the gradients of their outputs, by forward hooks."""

    layers: Mapping[str, nn.Module]
    _handles: list[RemovableHandle] = field(factory=list)

    def attach(self, step: Step, needs: Iterable[str]) -> None:
        """Capture in ``step`` what is in ``needs``; the last micro-batch's tensors stay."""
        wanted = set(needs)
        if "activations" in wanted:
            step.activations = {}
        if "output_gradients" in wanted:
            step.output_gradients = {}
        if step.activations is None and step.output_gradients is None:
            return
        for name, module in self.layers.items():
            self._handles.append(module.register_forward_hook(_capture(step, name)))

    def detach(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def _capture(step: Step, name: str) -> Any:
    def keep(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if step.activations is not None and inputs and isinstance(inputs[0], Tensor):
            step.activations[name] = inputs[0].detach()
        kept = step.output_gradients
        if kept is not None and isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(lambda gradient: kept.__setitem__(name, gradient.detach()))

    return keep
