"""The casts of one layer at work: its quantizers, and its stand-in for the module's forward."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from attrs import define, field
from torch import Tensor, nn

from altcore.blocks import AnyFormat
from altcore.errors import BadInput
from altcore.numerics import round_to_grid
from altcore.recipe import ATTENTION_OPERANDS, Cast, Casts
from altcore.surgery.attention import AttentionMode
from altcore.surgery.compute import grid_dtype
from altcore.surgery.convolution import convolve
from altcore.surgery.layers import has_transposed_weight, is_conv, is_linear, matrices
from altcore.surgery.product import PAIRS, QuantizedLinear, StraightThrough
from altcore.surgery.quantizer import Axes, Grid, Operand, Quantizer

if TYPE_CHECKING:
    from altcore.surgery.quantization import Quantization


@define(eq=False)
class View:
    """A master weight and its quantized view, as of the last training forward."""

    parameter: nn.Parameter
    master: Tensor
    """Its values then, as the product saw them: transposed where the layer does that."""
    grid: Grid
    cast: Cast
    key: int | None
    is_transposed: bool = False

    def movement(self) -> Tensor:
        """Return (masters that moved, those of them whose view did not), int64 (2,).

        Both views are taken at the scale of that forward, and with its random bits.
        """
        cast, now = self.cast, self.parameter.detach()
        now = now.t() if self.is_transposed else now
        grid = round_to_grid(
            now,
            cast.element,
            rounding=cast.rounding,
            overflow=cast.overflow,
            r=self.grid.r,
            key=self.key,
        )
        moved = now != self.master
        return torch.stack([moved.sum(), (moved & (grid == self.grid.values)).sum()])


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
    def compute(self) -> str:
        """In which type products run; see `altcore.surgery.compute.COMPUTES`."""
        return self.owner.compute

    @property
    def is_tracking(self) -> bool:
        """Whether views of master weights are to be kept: on recorded steps, not in a probe."""
        return self.owner.is_tracking and self.owner.clock.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Stand in for the module's own forward."""
        if self.owner.is_off:
            return self.own_forward(*args, **kwargs)
        if any(self.casts[o] for o in ATTENTION_OPERANDS):
            return self.attention(*args, **kwargs)
        if is_linear(self.module):
            return self.linear(*args, **kwargs)
        if is_conv(self.module):
            return self.conv(*args, **kwargs)
        return self.with_quantized_weights(*args, **kwargs)

    def linear(self, input: Tensor) -> Any:
        """Multiply with the three products quantized."""
        module: Any = self.module
        weight = module.weight.t() if has_transposed_weight(module) else module.weight
        return QuantizedLinear.apply(  # type: ignore[no-untyped-call] # torch leaves it untyped
            input, weight, module.bias, self, module.training
        )

    def attention(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's own forward with the operands of attention's products quantized."""
        mode = AttentionMode(self.quantizers, self.module.training)
        with mode:
            result = self.own_forward(*args, **kwargs)
        if not mode.calls:
            raise BadInput(
                f"layer {self.name} ({type(self.module).__name__}) does not call "
                "torch.nn.functional.scaled_dot_product_attention: the recipe's role attention "
                "cannot reach its products"
            )
        return result

    def conv(self, input: Tensor) -> Any:
        """Convolve with the three products quantized."""
        return convolve(self.module, input, self)

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
        tracks = self.module.training and self.is_tracking
        operand, grid = quantizer.operand(parameter, self.module.training, (-1,), wants_grid=tracks)
        if grid is not None:
            self._keep_view(name, parameter, parameter.detach(), quantizer, grid)
        value = operand.values if operand.scale is None else operand.values * operand.scale
        value = value.to(parameter.dtype)
        return StraightThrough.apply(parameter, value, operand.inside)  # type: ignore[no-untyped-call] # as above

    def _keep_view(
        self, name: str, parameter: nn.Parameter, x: Tensor, quantizer: Quantizer, grid: Grid
    ) -> None:
        turned = has_transposed_weight(self.module)
        cast, key = quantizer.cast, quantizer.last_key
        self.views[name] = View(parameter, x.detach().clone(), grid, cast, key, turned)

    def stored_format(self, operand: str) -> AnyFormat | None:
        """Return the format whose grid a weight operand is on already, or None.

        It is then used with no second quantization, unless its own cast has another format or a
        Hadamard transform, or the weight is one that is computed from parameters.
        """
        stored, own = self.casts["stored_weight"], self.casts[operand]
        if stored is None or (own is not None and own.format != stored.format):
            return None
        if own is not None and own.hadamard:
            return None  # The transformed values are on no grid.
        is_product = is_linear(self.module) or is_conv(self.module)
        if is_product and "weight" not in self.module._parameters:
            return None  # It is computed from what is stored.
        return stored.format

    def pair(
        self,
        role: str,
        x: Tensor,
        training: bool,
        axes: tuple[Axes, Axes],
        wanted: tuple[bool, bool] = (True, True),
    ) -> tuple[Operand | None, Operand | None]:
        """Return a role's two operands; where one rounding serves both, they are the same."""
        first, second = PAIRS[role]
        cast = self.casts[first]
        if cast == self.casts[second] and not (cast and cast.has_axis):
            one = self._operand(first, x, training, axes[0])
            return one, one
        return (
            self._operand(first, x, training, axes[0]) if wanted[0] else None,
            self._operand(second, x, training, axes[1]) if wanted[1] else None,
        )

    def _operand(self, name: str, x: Tensor, training: bool, axes: Axes) -> Operand:
        if name.startswith("weight@") and (stored := self.stored_format(name)):
            return Operand(x.detach(), format=stored)
        quantizer = self.quantizers.get(name)
        if quantizer is None:
            return Operand(x.detach())
        parameter = self.module._parameters.get("weight")
        tracks = name == "weight@fwd" and training and self.is_tracking and parameter is not None
        dtype = grid_dtype(quantizer.cast.format, self.compute)
        operand, grid = quantizer.operand(x, training, axes, wants_grid=tracks, dtype=dtype)
        if grid is not None:
            assert parameter is not None
            self._keep_view(name, parameter, x, quantizer, grid)
        return operand

    def count_product(self, a: Operand, b: Operand, flops: int) -> None:
        """Count the operations of a product whose operands are both on a grid."""
        if self.owner.flops is not None and a.format is not None and b.format is not None:
            self.owner.flops += flops


class StandIn:
    """What a quantized module has for its ``forward``: calls that of its `LayerCasts`.

    A copy of the module, be it deep or pickled, has the module's own forward: it is a plain one
    with the same weights.
    """

    def __init__(self, layer: LayerCasts) -> None:
        self.layer = layer
        # What a compiler cannot trace: kernels, counters, the scales' state.
        self.run = torch.compiler.disable(layer.forward)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.layer.own_forward, memo)

    def __reduce__(self) -> tuple[Any, ...]:
        return _same, (self.layer.own_forward,)


def _same(forward: Any) -> Any:
    return forward
