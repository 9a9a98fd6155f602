"""A layer under a recipe: its quantizers, and what runs in place of the module's forward.

A layer that runs torch's own forward is its one product. Any other module runs its own forward,
whatever that is, and its products are met where they happen (`altcore.quantization.interception`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from attrs import define, field
from torch import Tensor, nn

from altcore.errors import BadInput
from altcore.formats import AnyFormat
from altcore.numerics import round_to_grid
from altcore.quantization.arguments import check_operand, refuse_transforms
from altcore.quantization.compute import grid_dtype
from altcore.quantization.convolution import Geometry, convolve
from altcore.quantization.flop_count import OPERANDS_OF
from altcore.quantization.interception import intercepting, suspended
from altcore.quantization.layers import (
    called,
    has_transposed_weight,
    kind_of,
    runs_torchs_forward,
    site,
)
from altcore.quantization.product import PAIRS, QuantizedLinear, StraightThrough
from altcore.quantization.quantizer import Axes, Grid, Operand, Quantizer
from altcore.quantization.stored import version_of
from altcore.recipes import ATTENTION_OPERANDS, LOOKUP, PRODUCT_OPERANDS, Cast, Casts

if TYPE_CHECKING:
    from altcore.quantization.quantization import Quantization
    from altcore.quantization.stored import StoredWeight


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
        now = now.mT if self.is_transposed else now
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
class QuantizedLayer:
    """A module under a recipe, and what it met."""

    name: str
    module: nn.Module
    casts: Casts
    quantizers: dict[str, Quantizer]
    """By operand, or by ``operand/parameter``; see `site`."""
    owner: Quantization
    own_forward: Callable[..., Any]
    stored: dict[str, StoredWeight] = field(factory=dict)
    """By parameter, of this layer's own."""
    views: dict[str, View] = field(factory=dict)
    seen_as: dict[str, str | None] = field(factory=dict)
    """How the last product or lookup saw a parameter: ``itself``, ``turned`` (its last two axes),
    or None: a part of it, or what is computed from it, whose scale is not the parameter's."""
    calls: int = 0
    """How often the layer ran quantized, under the recipe of now."""
    met: dict[str, set[str]] = field(factory=dict)
    """Operands that were on a grid in it, and of which of its parameters each time."""
    has_learned: bool = False
    """Whether a backward pass went through it, under the recipe of now."""
    is_removed: bool = False
    """Whether the quantization was taken back; somebody may still hold the patched forward."""
    is_direct: bool = field(init=False)
    """Whether the module's forward is torch's own product, so that the layer computes that."""
    kind: str = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.is_direct = runs_torchs_forward(self.module, self.own_forward)
        self.kind = kind_of(self.module)

    @property
    def is_tracking(self) -> bool:
        """Whether views of master weights are to be kept: on recorded steps, not in a probe."""
        return self.owner.is_tracking and self.owner.clock.training

    @property
    def scope(self) -> list[QuantizedLayer]:
        """The quantized layers within the module, itself included: it may read their weights."""
        within = {id(m) for m in self.module.modules()}
        return [layer for layer in self.owner.layers.values() if id(layer.module) in within]

    @property
    def wants_attention(self) -> bool:
        """Whether the recipe casts operands of attention's products here."""
        return any(self.casts[o] for o in ATTENTION_OPERANDS)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run in place of the module's own forward."""
        if self.is_removed:
            return self.own_forward(*args, **kwargs)
        if self.owner.is_off:
            with suspended():  # a layer around this one may be quantized
                return self.own_forward(*args, **kwargs)
        refuse_transforms(self.name, self.module)
        self.calls += 1
        self.owner.before_forward(self)
        if self.is_direct:
            with suspended():
                return self.multiply_or_convolve(*args, **kwargs)
        with intercepting(self) as frame:
            result = self.own_forward(*args, **kwargs)
        if self.wants_attention and not frame.attention_calls:
            self.owner.tell_unseen_attention(self)
        with suspended():
            result = frame.looked_up(result)  # a position table may hand its weight out as it is
            return self.owner.awaiting_gradient(result)

    def multiply_or_convolve(self, input: Tensor) -> Any:
        """Compute torch's own forward of a Linear or a convolution, with quantized products."""
        module: Any = self.module
        weight, product = module.weight, Product(self, "weight")
        stored = self.stored.get("weight")
        if stored is not None and "weight" in module._parameters:
            weight, product.is_stored = stored.on_grid(weight), True
        if self.kind == "linear":
            weight = weight.t() if has_transposed_weight(module) else weight
            return product.multiply(input, weight, module.bias)
        padding = module.padding
        if isinstance(padding, str) or module.padding_mode != "zeros":
            mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
            pads = module._reversed_padding_repeated_twice
            input, padding = nn.functional.pad(input, pads, mode=mode), (0,) * (weight.dim() - 2)
        geometry = Geometry(module.stride, tuple(padding), module.dilation, module.groups)
        return product.convolve(input, weight, module.bias, geometry)

    def tell_recomputation(self) -> None:
        """Warn of a product that has no gradient in a forward that has: its backward is another."""
        self.owner.warn(
            f"{called(self.name)} ({type(self.module).__name__}) multiplies without gradients in a "
            "forward that has them. If it checkpoints a part of itself by use_reentrant=True, that "
            "part is computed again unquantized: checkpoint the whole module, from outside. If it "
            "has an autograd.Function of its own, the backward pass of that is not quantized"
        )

    def note(self, operand: str, own: str, x: Tensor) -> None:
        """Note that an operand with elements was on a grid."""
        if x.numel():
            self.met.setdefault(operand, set()).add(own)

    def site(self, operand: str, own: str) -> str:
        """Return the name of a quantizer within the layer, for its parameter ``own``."""
        return site(self.kind, operand, own)

    def put_on_grid(self, own: str, *, is_told: bool = True) -> None:
        """Round a stored weight again that the module's own forward changed before its use."""
        stored, weight = self.stored.get(own), self.module._parameters.get(own)
        if stored is not None and weight is not None:
            stored.on_grid(weight, is_told=is_told)

    def product(self, own: str, *, is_stored: bool = False) -> Product | None:
        """Return the products by the parameter ``own``; None where no operand of them is cast."""
        if not any(self.casts[o] for o in PRODUCT_OPERANDS):
            return None
        return Product(self, own, is_stored and own in self.stored)

    def lookup(self, own: str, weight: Tensor) -> Tensor:
        """Return a weight as it is looked up or added: on its grid, if the recipe says so."""
        quantizer = self.quantizers.get(f"{LOOKUP}/{own}")
        if quantizer is None:
            return weight
        check_operand(weight, self.name, own)
        self.note(LOOKUP, own, weight)
        if self.stored_format(LOOKUP, own):
            return weight
        training = self.module.training
        self.look_at(own, weight)
        tracks = training and self.is_tracking
        operand, grid = quantizer.quantize(weight, training, (-1,), wants_grid=tracks)
        if grid is not None:
            self.keep_view(own, weight, quantizer, grid)
        value = operand.values if operand.scale is None else operand.values * operand.scale
        return StraightThrough.apply(weight, value.to(weight.dtype), operand.inside)  # type: ignore[no-untyped-call] # torch leaves it untyped

    def round_attention(self, name: str, x: Tensor, axis: int) -> Tensor:
        """Return an operand of attention as its product, a sum over ``axis``, sees it.

        In float32 at least; the gradient passes straight through.
        """
        quantizer = self.quantizers.get(name)
        wide = torch.promote_types(x.dtype, torch.float32)
        if quantizer is None:
            return x.to(wide)
        x = check_operand(x, self.name, name)
        self.note(name, "", x)
        operand, _ = quantizer.quantize(x, self.module.training, (axis,))
        values = operand.values if operand.scale is None else operand.values * operand.scale
        return StraightThrough.apply(x, values.to(wide), operand.inside)  # type: ignore[no-untyped-call] # torch leaves it untyped

    def count_attention(self, product: str, x: Tensor, y: Tensor) -> None:
        """Count a product of attention, ``scores`` or ``mix``: x @ y."""
        if self.owner.flops is not None:
            first, second = (name in self.quantizers for name in OPERANDS_OF[product])
            self.owner.flops.add(product, first, second, 2 * x.numel() * y.shape[-1])

    def keep_view(self, own: str, x: Tensor, quantizer: Quantizer, grid: Grid) -> None:
        """Keep a master weight and its view, to see what the optimizer moves."""
        seen, parameter = self.seen_as.get(own), self.module._parameters.get(own)
        if seen is not None and parameter is not None:
            master, is_turned = x.detach().clone(), seen == "turned"
            cast, key = quantizer.cast, quantizer.last_key
            self.views[own] = View(parameter, master, grid, cast, key, is_turned)

    def look_at(self, own: str, x: Tensor) -> None:
        """Note whether ``x`` is the parameter as it is, turned, or something else."""
        parameter, seen = self.module._parameters.get(own), None
        if parameter is not None and x.data_ptr() == parameter.data_ptr():
            if (x.shape, x.stride()) == (parameter.shape, parameter.stride()):
                seen = "itself"
            elif (x.mT.shape, x.mT.stride()) == (parameter.shape, parameter.stride()):
                seen = "turned"
        self.seen_as[own] = seen

    def stored_format(self, operand: str, own: str) -> AnyFormat | None:
        """Return the format whose grid a weight operand is on already, or None.

        It is then used with no second quantization, unless its own cast has another format or a
        Hadamard transform.
        """
        stored, cast = self.stored.get(own), self.casts[operand]
        if stored is None or (cast is not None and cast.format != stored.cast.format):
            return None
        # Transformed values are on no grid.
        return None if cast is not None and cast.hadamard else stored.cast.format


@define(eq=False)
class Product:
    """The three products by one weight of a layer: their operands, and what they count."""

    layer: QuantizedLayer
    own: str
    """The parameter's name in its module."""
    is_stored: bool = False
    """Whether the weight is a stored one, or a part of it: on a grid already."""
    weights: dict[tuple[str, int, int, int | None], tuple[Tensor, Operand]] | None = None
    """Weight operands made in a forward that may use them again: by name, and by identity, place
    and version of the weight, which the forward may change in between."""

    @property
    def compute(self) -> str:
        """In which type products run; see `altcore.quantization.compute.COMPUTES`."""
        return self.layer.owner.compute

    def multiply(self, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        """Return ``x @ w.mT + bias`` with the three products quantized.

        x: (..., in), w: (out, in); or x: (batch, tokens, in), w: (batch, out, in).
        """
        layer = self.layer
        x = check_operand(x, layer.name, "input")
        w = check_operand(w, layer.name, self.own)
        return QuantizedLinear.apply(x, w, bias, self, layer.module.training)  # type: ignore[no-untyped-call] # torch leaves it untyped

    def convolve(self, x: Tensor, w: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        """Convolve with the three products quantized."""
        layer = self.layer
        x = check_operand(x, layer.name, "input")
        w = check_operand(w, layer.name, self.own)
        return convolve(self, layer.module.training, x, w, bias, geometry)

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
        casts = self.layer.casts
        cast = casts[first]
        if cast == casts[second] and not (cast and cast.has_axis):
            one = self._operand(first, x, training, axes)
            if one.format is not None:
                self.layer.note(second, self.own, x)
            return one, one
        return (
            self._operand(first, x, training, axes) if wanted[0] else None,
            self._operand(second, x, training, axes[::-1]) if wanted[1] else None,
        )

    def _operand(self, name: str, x: Tensor, training: bool, axes: tuple[Axes, Axes]) -> Operand:
        layer, is_weight = self.layer, name.startswith("weight@")
        if is_weight and self.is_stored and (stored := layer.stored_format(name, self.own)):
            layer.note(name, self.own, x)
            return Operand(x.detach(), format=stored)
        quantizer = layer.quantizers.get(layer.site(name, self.own))
        if quantizer is None:
            return Operand(x.detach())
        key = name, id(x), x.data_ptr(), version_of(x)
        if self.weights is not None and key in self.weights:
            return self.weights[key][1]
        layer.note(name, self.own, x)
        if name == "weight@fwd":
            layer.look_at(self.own, x)
        tracks = name == "weight@fwd" and training and layer.is_tracking
        dtype = grid_dtype(quantizer.cast.format, self.compute)
        operand, grid = quantizer.quantize(
            x, training, axes[0], across=axes[1][0], wants_grid=tracks, dtype=dtype
        )
        if grid is not None:
            layer.keep_view(self.own, x, quantizer, grid)
        if is_weight and self.weights is not None and not x.is_inference():  # it has no version
            self.weights[key] = x, operand
        return operand

    def count_product(self, product: str, a: Operand, b: Operand, flops: int) -> None:
        """Count the operations of a product: which of its operands are on a grid."""
        count = self.layer.owner.flops
        if count is not None:
            count.made += flops
            count.add(product, a.format is not None, b.format is not None, flops)

    def begin_backward(self) -> None:
        """Note that the layer learns; `BadInput` if its backward pass is differentiated itself."""
        self.layer.has_learned = self.layer.owner.has_learned = True
        if torch.is_grad_enabled():
            raise BadInput(
                f"{called(self.layer.name)}: a quantized layer has no second derivative "
                "(create_graph=True): differentiate the unquantized model, under q.off()"
            )
