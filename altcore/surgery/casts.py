"""The casts of one layer at work: its quantizers, and its stand-in for the module's forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from attrs import define, field
from torch import Tensor, nn

from altcore.formats import Format
from altcore.numerics import round_to_grid
from altcore.recipe import Cast, Casts
from altcore.surgery.layers import matrices
from altcore.surgery.product import QuantizedLinear, StraightThrough
from altcore.surgery.quantizer import Operand, Quantizer

if TYPE_CHECKING:
    from altcore.surgery.quantization import Quantization

PAIRS = {
    "activation": ("activation@fwd", "activation@wgrad"),
    "weight": ("weight@fwd", "weight@dgrad"),
    "gradient": ("gradient@dgrad", "gradient@wgrad"),
}


@define(eq=False)
class View:
    """A master weight and its quantized view, as of the last training forward."""

    parameter: nn.Parameter
    master: Tensor
    grid: Tensor
    """Its values on the grid, unscaled."""
    r: Tensor | None
    cast: Cast
    key: int | None

    def movement(self) -> Tensor:
        """Return (masters that moved, those of them whose view did not), int64 (2,).

        Both views are taken at the scale of that forward, and with its random bits.
        """
        cast, now = self.cast, self.parameter.detach()
        grid = round_to_grid(
            now, cast.format, rounding=cast.rounding, overflow=cast.overflow, r=self.r, key=self.key
        )
        moved = now != self.master
        return torch.stack([moved.sum(), (moved & (grid == self.grid)).sum()])


@define(eq=False)
class LayerCasts:
    """What a layer's forward and backward ask: operands by role."""

    name: str
    module: nn.Module
    casts: Casts
    quantizers: dict[str, Quantizer]
    owner: Quantization
    own_forward: Callable[..., Any]
    views: dict[str, View] = field(factory=dict)

    @property
    def bfloat16(self) -> bool:
        """Whether products may run in bfloat16."""
        return self.owner.compute == "bfloat16"

    @property
    def is_tracking(self) -> bool:
        """Whether views of master weights are to be kept: on recorded steps, not in a probe."""
        return self.owner.is_tracking and self.owner.clock.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Stand in for the module's own forward."""
        if self.owner.is_off:
            return self.own_forward(*args, **kwargs)
        if isinstance(self.module, nn.Linear):
            return self.linear(*args, **kwargs)
        return self.with_quantized_weights(*args, **kwargs)

    def linear(self, input: Tensor) -> Any:
        """Multiply with the three products quantized."""
        module = self.module
        assert isinstance(module, nn.Linear)
        return QuantizedLinear.apply(  # type: ignore[no-untyped-call] # torch leaves it untyped
            input, module.weight, module.bias, self, module.training
        )

    def with_quantized_weights(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's own forward on weights that were rounded to the grid."""
        own = matrices(self.module)
        slots: dict[str, Any] = self.module._parameters
        try:
            for name, parameter in own.items():
                quantizer = self.quantizers.get(f"weight@fwd/{name}")
                if quantizer is not None and self.stored_format("weight@fwd") is None:
                    slots[name] = self._quantized(name, parameter, quantizer)
            return self.own_forward(*args, **kwargs)
        finally:
            slots.update(own)

    def _quantized(self, name: str, parameter: nn.Parameter, quantizer: Quantizer) -> Any:
        operand, r = quantizer.operand(parameter, self.module.training)
        if self.module.training and self.is_tracking:
            master = parameter.detach().clone()
            key = quantizer.last_key
            self.views[name] = View(parameter, master, operand.values, r, quantizer.cast, key)
        value = operand.values if operand.scale is None else operand.values * operand.scale
        value = value.to(parameter.dtype)
        return StraightThrough.apply(parameter, value)  # type: ignore[no-untyped-call] # as above

    def stored_format(self, operand: str) -> Format | None:
        """Return the format whose grid a weight operand is on already, or None.

        It is then used with no second quantization, unless its own cast has another format.
        """
        stored, own = self.casts["stored_weight"], self.casts[operand]
        if stored is None or (own is not None and own.format != stored.format):
            return None
        return stored.format

    def pair(
        self, role: str, x: Tensor, training: bool, wanted: tuple[bool, bool] = (True, True)
    ) -> tuple[Operand | None, Operand | None]:
        """Return a role's two operands; where their casts are equal, one serves both."""
        first, second = PAIRS[role]
        if self.casts[first] == self.casts[second]:
            one = self._operand(first, x, training)
            return one, one
        return (
            self._operand(first, x, training) if wanted[0] else None,
            self._operand(second, x, training) if wanted[1] else None,
        )

    def _operand(self, name: str, x: Tensor, training: bool) -> Operand:
        if name.startswith("weight@") and (stored := self.stored_format(name)):
            return Operand(x.detach(), format=stored)
        quantizer = self.quantizers.get(name)
        if quantizer is None:
            return Operand(x.detach())
        operand, r = quantizer.operand(x, training)
        if name == "weight@fwd" and training and self.is_tracking:
            parameter = self.module.weight
            assert isinstance(parameter, nn.Parameter)
            master = x.detach().clone()
            key = quantizer.last_key
            self.views[name] = View(parameter, master, operand.values, r, quantizer.cast, key)
        return operand

    def count_product(self, a: Operand, b: Operand, flops: int) -> None:
        """Count the operations of a product whose operands are both on a grid."""
        if self.owner.flops is not None and a.format is not None and b.format is not None:
            self.owner.flops += flops
