"""A layer under a recipe: its quantizers, and the operands of the products by its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from attrs import define, field
from torch import Tensor, nn

from altcore.errors import BadInput
from altcore.formats import AnyFormat
from altcore.numerics import round_to_grid
from altcore.quantization.checks import check_operand
from altcore.quantization.compute import float8_dtype, grid_dtype
from altcore.quantization.context import Context
from altcore.quantization.discovery import called, layer_kind, runs_torchs_forward
from altcore.quantization.flops import OPERANDS_OF
from altcore.quantization.product import PAIRS, StraightThrough
from altcore.quantization.quantizer import Axes, Operand, Quantizer, RoundedTensor
from altcore.quantization.rules import rule_of
from altcore.quantization.site import Site
from altcore.quantization.stored import StoredWeight, version_of
from altcore.recipes import ATTENTION_OPERANDS, LOOKUP, PRODUCT_OPERANDS, Cast, Casts


@define(eq=False)
class WeightView:
    """A master weight and its quantized view, as of the last training forward."""

    parameter: nn.Parameter
    master: Tensor
    """Its values then, as the product saw them: transposed if the layer transposes it."""
    rounded: RoundedTensor
    cast: Cast
    key: int | None
    is_transposed: bool = False

    def movement(self) -> Tensor:
        """Return (masters that moved, those of them whose view did not), int64 (2,).

        Both views are taken at the scale of that forward, and with its random bits.
        """
        cast, now = self.cast, self.parameter.detach()
        now = now.mT if self.is_transposed else now
        rounded = round_to_grid(now, cast.element, rule_of(cast), r=self.rounded.r, key=self.key)
        moved = now != self.master
        return torch.stack([moved.sum(), (moved & (rounded == self.rounded.values)).sum()])


@define(eq=False)
class QuantizedLayer:
    """A module under a recipe: its quantizers, and the operands that they rounded."""

    name: str
    module: nn.Module
    casts: Casts
    quantizers: dict[Site, Quantizer]
    context: Context
    """Of the quantized model."""
    own_forward: Callable[..., Any]
    """The module's forward, unquantized."""
    siblings: Mapping[str, QuantizedLayer] = field(factory=dict)
    """All quantized layers of the model, by name, this one included."""
    stored: dict[str, StoredWeight] = field(factory=dict)
    """By parameter, of this layer's own."""
    views: dict[str, WeightView] = field(factory=dict)
    seen_as: dict[str, str | None] = field(factory=dict)
    """How the last product or lookup saw a parameter: ``itself``, ``turned`` (its last two axes),
    or None: a part of it, or a tensor computed from it, whose scale is not the parameter's."""
    calls: int = 0
    """How often the layer ran quantized, under the current recipe."""
    met: dict[str, set[str]] = field(factory=dict)
    """Operands that were on a grid in it, and of which of its parameters each time."""
    has_learned: bool = False
    """Whether a backward pass went through it, under the current recipe."""
    is_removed: bool = False
    """Whether the quantization was taken back; somebody may still hold the patched forward."""
    is_direct: bool = field(init=False)
    """Whether the module's forward is torch's own product, so that the layer computes that."""
    kind: str = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.is_direct = runs_torchs_forward(self.module, self.own_forward)
        self.kind = layer_kind(self.module)

    @property
    def is_tracking(self) -> bool:
        """Whether views of master weights are to be kept: on recorded steps, not in a probe."""
        context = self.context
        return context.tracks_views and not (context.is_frozen or context.is_recomputing)

    @property
    def scope(self) -> list[QuantizedLayer]:
        """The quantized layers within the module, itself included: it may read their weights."""
        within = {id(m) for m in self.module.modules()}
        return [layer for layer in self.siblings.values() if id(layer.module) in within]

    @property
    def wants_attention(self) -> bool:
        """Whether the recipe casts operands of attention's products here."""
        return any(self.casts[o] for o in ATTENTION_OPERANDS)

    def tell_recomputation(self) -> None:
        """Warn of a product that has no gradient in a forward that has: its backward is another."""
        self.context.warn(
            f"{called(self.name)} ({type(self.module).__name__}) multiplies without gradients in a "
            "forward that has them. If it checkpoints a part of itself by use_reentrant=True, that "
            "part is computed again unquantized: checkpoint the whole module, from outside. If it "
            "has an autograd.Function of its own, the backward pass of that is not quantized"
        )

    def note(self, operand: str, own: str, x: Tensor) -> None:
        """Note that an operand with elements was on a grid."""
        if x.numel():
            self.met.setdefault(operand, set()).add(own)

    def site(self, operand: str, own: str) -> Site:
        """Return where an operand of the products by the parameter ``own`` is quantized."""
        return Site.of(self.name, self.kind, operand, own)

    def put_on_grid(self, own: str, *, is_told: bool = True) -> Tensor | None:
        """Round a stored weight again that the module's own forward changed before its use.

        Returns the scale of its grid; None if the weight is not stored.
        """
        stored, weight = self.stored.get(own), self.module._parameters.get(own)
        if stored is None or weight is None:
            return None
        return stored.on_grid(weight, is_told=is_told)[1]

    def product(self, own: str, stored_scale: Tensor | None = None) -> WeightProducts | None:
        """Return the products by the parameter ``own``; None if no operand of them is cast."""
        if not any(self.casts[o] for o in PRODUCT_OPERANDS):
            return None
        return WeightProducts(self, own, stored_scale)

    def lookup(self, own: str, weight: Tensor) -> Tensor:
        """Return a weight as it is looked up or added: on its grid, if the recipe says so."""
        quantizer = self.quantizers.get(self.site(LOOKUP, own))
        if quantizer is None:
            return weight
        check_operand(weight, self.name, own)
        self.note(LOOKUP, own, weight)
        if self.stored_format(LOOKUP, own):
            return weight
        training = self.module.training
        self.look_at(own, weight)
        tracks = training and self.is_tracking
        operand, rounded = quantizer.quantize(weight, training, (-1,), wants_rounded=tracks)
        if rounded is not None:
            self.keep_view(own, weight, quantizer, rounded)
        value = operand.values if operand.scale is None else operand.values * operand.scale
        return StraightThrough.apply(weight, value.to(weight.dtype), operand.clipped)  # type: ignore[no-untyped-call] # torch leaves it untyped

    def round_attention(self, name: str, x: Tensor, axis: int) -> Tensor:
        """Return an operand of attention as its product, a sum over ``axis``, sees it.

        In float32 at least; the gradient passes straight through.
        """
        quantizer = self.quantizers.get(Site(self.name, name))
        wide = torch.promote_types(x.dtype, torch.float32)
        if quantizer is None:
            return x.to(wide)
        x = check_operand(x, self.name, name)
        self.note(name, "", x)
        operand, _ = quantizer.quantize(x, self.module.training, (axis,))
        values = operand.values if operand.scale is None else operand.values * operand.scale
        return StraightThrough.apply(x, values.to(wide), operand.clipped)  # type: ignore[no-untyped-call] # torch leaves it untyped

    def count_attention(self, product: str, x: Tensor, y: Tensor) -> None:
        """Count a product of attention, ``scores`` or ``mix``: x @ y."""
        if self.context.flops is not None:
            operands = OPERANDS_OF[product]
            first, second = (Site(self.name, operand) in self.quantizers for operand in operands)
            self.context.flops.add(product, first, second, 2 * x.numel() * y.shape[-1])

    def keep_view(self, own: str, x: Tensor, quantizer: Quantizer, rounded: RoundedTensor) -> None:
        """Keep a master weight and its view, to see which of them the optimizer moves."""
        seen, parameter = self.seen_as.get(own), self.module._parameters.get(own)
        if seen is not None and parameter is not None:
            master, is_turned = x.detach().clone(), seen == "turned"
            cast, key = quantizer.cast, quantizer.last_key
            self.views[own] = WeightView(parameter, master, rounded, cast, key, is_turned)

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
class WeightProducts:
    """The three products by one weight of a layer: their operands and their FLOPs."""

    layer: QuantizedLayer
    parameter: str
    """The parameter's name in its module."""
    stored_scale: Tensor | None = None
    """The grid's, if the weight is a stored one, or a part of it; None for one on no grid."""
    weights: dict[tuple[str, int, int, int | None], tuple[Tensor, Operand]] | None = None
    """Weight operands made in a forward that may use them again: by name, and by identity, place
    and version of the weight, which the forward may change in between."""

    @property
    def compute(self) -> str:
        """In which type products run; see `altcore.quantization.compute.COMPUTES`."""
        return self.layer.context.compute

    def operands(
        self,
        role: str,
        x: Tensor,
        training: bool,
        axes: tuple[Axes, Axes],
        wanted: tuple[bool, bool] = (True, True),
    ) -> tuple[Operand | None, Operand | None]:
        """Return a role's two operands: the same object twice if one rounding serves both."""
        first, second = PAIRS[role]
        casts = self.layer.casts
        cast = casts[first]
        if cast == casts[second] and not (cast and cast.has_axis):
            one = self._operand(first, x, training, axes)
            if one.format is not None:
                self.layer.note(second, self.parameter, x)
            return one, one
        return (
            self._operand(first, x, training, axes) if wanted[0] else None,
            self._operand(second, x, training, axes[::-1]) if wanted[1] else None,
        )

    def _operand(self, name: str, x: Tensor, training: bool, axes: tuple[Axes, Axes]) -> Operand:
        layer, is_weight = self.layer, name.startswith("weight@")
        stored = layer.stored_format(name, self.parameter) if is_weight else None
        if stored is not None and self.stored_scale is not None:
            layer.note(name, self.parameter, x)
            return self._stored_operand(x.detach(), stored, self.stored_scale)
        quantizer = layer.quantizers.get(layer.site(name, self.parameter))
        if quantizer is None:
            return Operand(x.detach())
        key = name, id(x), x.data_ptr(), version_of(x)
        if self.weights is not None and key in self.weights:
            return self.weights[key][1]
        layer.note(name, self.parameter, x)
        if name == "weight@fwd":
            layer.look_at(self.parameter, x)
        tracks = name == "weight@fwd" and training and layer.is_tracking
        dtype = grid_dtype(quantizer.cast.format, x.dtype, self.compute)
        operand, rounded = quantizer.quantize(
            x, training, axes[0], across=axes[1][0], wants_rounded=tracks, dtype=dtype
        )
        if rounded is not None:
            layer.keep_view(self.parameter, x, quantizer, rounded)
        if is_weight and self.weights is not None and not x.is_inference():  # it has no version
            self.weights[key] = x, operand
        return operand

    def _stored_operand(self, x: Tensor, fmt: AnyFormat, scale: Tensor) -> Operand:
        """Return a stored weight as it is; for FP8 units, which take codes, without its scale."""
        if self.compute != "exact-float8" or float8_dtype(fmt) is None:
            return Operand(x, format=fmt)
        return Operand(x * (1 / scale), scale, fmt)

    def count(self, product: str, a: Operand, b: Operand, flops: int) -> None:
        """Count the operations of a product, by its operands on a grid."""
        total = self.layer.context.flops
        if total is not None:
            total.made += flops
            total.add(product, a.format is not None, b.format is not None, flops)

    def begin_backward(self) -> None:
        """Note that the layer learns; raise `BadInput` in a second derivative."""
        self.layer.has_learned = True
        self.layer.context.note_backward()
        if torch.is_grad_enabled():
            raise BadInput(
                f"{called(self.layer.name)}: a quantized layer has no second derivative "
                "(create_graph=True): differentiate the unquantized model, under q.off()"
            )
