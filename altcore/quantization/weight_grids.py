"""The grid that each weight is on, or is seen on by the product that quantizes it."""

from __future__ import annotations

from attrs import define, field, frozen
from torch import Tensor, nn

from altcore.formats import Format
from altcore.quantization.discovery import ParameterSlot, matrices, unique_matrices
from altcore.quantization.layer import QuantizedLayer
from altcore.quantization.quantizer import Quantizer
from altcore.quantization.stored import StoredWeight
from altcore.recipes import LOOKUP


@frozen
class WeightGrid:
    """The grid that a weight is on, or is seen on: a format's values times a scale."""

    format: Format
    """Of single values: a block format's elements."""
    scale: Tensor | None
    """Broadcasts to the weight; None for 1."""
    is_stored: bool
    """The weight lives on the grid; otherwise a product's view of a float32 master does."""


Source = StoredWeight | tuple[QuantizedLayer, Quantizer]
"""A stored weight, or the first product that quantizes a weight."""


@define(eq=False)
class QuantizedWeights:
    """The weights of a quantized model that are on a grid, or are seen on one."""

    sources: dict[str, tuple[ParameterSlot, Source]] = field(factory=dict)
    """By the weight's full name, in the model's order, a tied one once."""
    _by_identity: dict[int, tuple[Tensor, Source]] = field(factory=dict)
    """Found once: to walk through all sources for each weight would take long."""

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The weights themselves, by full name."""
        return {full: slot.parameter for full, (slot, _) in self.sources.items()}

    def grid_of(self, parameter: Tensor, *, before_step: bool = False) -> WeightGrid | None:
        """See `altcore.quantization.Quantization.grid_of`."""
        if parameter.dim() < 2:
            return None
        known = self._by_identity.get(id(parameter))
        if known is None or known[0] is not parameter:
            own = [(slot.parameter, source) for slot, source in self.sources.values()]
            self._by_identity = {id(weight): (weight, source) for weight, source in own}
            known = self._by_identity.get(id(parameter))
        if known is None:
            return None
        source = known[1]
        if isinstance(source, StoredWeight):
            scale = source.scale_before if before_step else source.scale
            return WeightGrid(source.cast.element, scale, is_stored=True)
        return _view_grid(*source)


def find_quantized_weights(
    model: nn.Module, stored: dict[str, StoredWeight], layers: dict[str, QuantizedLayer]
) -> QuantizedWeights:
    """Find the weights that are on a grid, or are seen on one."""
    views: dict[int, Source] = {}
    for layer in layers.values():
        for own, parameter in matrices(layer.module).items():
            for key in (layer.site("weight@fwd", own), layer.site(LOOKUP, own)):
                if key in layer.quantizers:
                    views.setdefault(id(parameter), (layer, layer.quantizers[key]))
    sources = {
        full: (ParameterSlot.of(model, full), source)
        for _, full, parameter in unique_matrices(model)
        if (source := stored.get(full) or views.get(id(parameter))) is not None
    }
    return QuantizedWeights(sources)


def _view_grid(layer: QuantizedLayer, quantizer: Quantizer) -> WeightGrid | None:
    """Return the grid on which a product saw a master weight; None if it saw something else."""
    cast, scale = quantizer.cast, quantizer.last_scale
    if cast.hadamard or (cast.blocks is not None and scale is None):
        return None
    seen = layer.seen_as.get(quantizer.site.parameter or "weight", "itself")
    if scale is not None and seen is None:
        return None
    if scale is not None and scale.ndim >= 2 and seen == "turned":
        scale = scale.mT
    return WeightGrid(cast.element, scale, is_stored=False)
