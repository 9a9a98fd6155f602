"""Rounding the gradients of parameters, for the role weight_gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from altcore.quantization.checks import check_whole
from altcore.quantization.context import Context
from altcore.quantization.discovery import ParameterSlot, unique_matrices
from altcore.quantization.quantizer import Quantizer
from altcore.quantization.site import Site
from altcore.recipes import ResolvedRecipe


class ModelHook:
    """A hook on a model, without effect in a copy of it."""

    def __init__(self, call: Callable[[], None] | None) -> None:
        self.call = call

    def __call__(self, *_: Any) -> None:
        if self.call is not None:
            self.call()

    def __deepcopy__(self, memo: dict[int, Any]) -> ModelHook:
        return ModelHook(None)

    def __reduce__(self) -> tuple[Any, ...]:
        return ModelHook, (None,)


class GradientRounding:
    """Hooks that round the gradient of every parameter whose recipe says so.

    They are renewed before every forward pass, since a parameter may be replaced or unfrozen.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: ResolvedRecipe,
        quantizers: Mapping[Site, Quantizer],
        context: Context,
    ) -> None:
        self.context = context
        self.hooks: dict[int, tuple[Tensor, RemovableHandle]] = {}
        self.rounded = [
            (
                name,
                ParameterSlot.of(model, full),
                quantizers[Site(name, "weight_gradient", full)],
            )
            for name, full, _ in unique_matrices(model)
            if plan[name]["weight_gradient"]
        ]
        renew = torch.compiler.disable(self.renew)
        self.before_forward = model.register_forward_pre_hook(ModelHook(renew))
        self.renew()

    def renew(self) -> None:
        """Hook the current parameters. Raises `BadInput` if the model was sharded."""
        before, self.hooks = self.hooks, {}
        for name, slot, quantizer in self.rounded:
            check_whole(name, slot.module, slot.name, "weight_gradient")
            parameter = slot.parameter
            if not parameter.requires_grad:
                continue
            known = before.pop(id(parameter), None)
            if known is None or known[0] is not parameter:
                known = parameter, parameter.register_hook(self._rounding(quantizer))
            self.hooks[id(parameter)] = known
        for _, handle in before.values():
            handle.remove()

    def _rounding(self, quantizer: Quantizer) -> Callable[[Tensor], Tensor]:
        def rounded(gradient: Tensor) -> Tensor:
            if self.context.is_off:
                return gradient
            if gradient.layout == torch.strided:
                return quantizer.fake(gradient, training=True)
            gradient = (
                gradient.coalesce()
            )  # of an embedding: elements that are left out are 0 in any format
            values = quantizer.fake(gradient.values(), training=True)
            return torch.sparse_coo_tensor(gradient.indices(), values, gradient.shape)

        return rounded

    def remove(self) -> None:
        """Leave gradients alone again."""
        self.before_forward.remove()
        for _, handle in self.hooks.values():
            handle.remove()
