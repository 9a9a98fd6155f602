"""Rounding the gradients of parameters, for the role weight_gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from altcore.quantization.checks import check_whole
from altcore.quantization.layers import ParameterSlot, unique_matrices
from altcore.quantization.quantizer import Quantizer

if TYPE_CHECKING:
    from altcore.quantization.quantization import Quantization


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

    They are looked after before every forward pass, since a parameter may be replaced or unfrozen.
    """

    def __init__(self, q: Quantization) -> None:
        self.q = q
        self.hooks: dict[int, tuple[Tensor, RemovableHandle]] = {}
        made = {quantizer.name: quantizer for quantizer in q.quantizers}
        self.rounded = [
            (name, ParameterSlot.of(q.model, full), made[f"{name}:weight_gradient/{full}"])
            for name, full, _ in unique_matrices(q.model)
            if q.plan[name]["weight_gradient"]
        ]
        renew = torch.compiler.disable(self.renew)
        self.before_forward = q.model.register_forward_pre_hook(ModelHook(renew))
        self.renew()

    def renew(self) -> None:
        """Hook the parameters of now. Raises `BadInput` if the model was sharded."""
        before, self.hooks = self.hooks, {}
        for name, slot, quantizer in self.rounded:
            check_whole(name, slot.module, slot.own, "weight_gradient")
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
            if self.q.is_off:
                return gradient
            if gradient.layout == torch.strided:
                return quantizer.fake(gradient, training=True)
            gradient = gradient.coalesce()  # of an embedding: what is not there is 0 on any grid
            values = quantizer.fake(gradient.values(), training=True)
            return torch.sparse_coo_tensor(gradient.indices(), values, gradient.shape)

        return rounded

    def remove(self) -> None:
        """Let gradients be what they are."""
        self.before_forward.remove()
        for _, handle in self.hooks.values():
            handle.remove()
