"""Which grid each weight is on, or is seen on."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import define, field, frozen
from torch import Tensor, nn

from altcore.formats import Format
from altcore.surgery.casts import LayerCasts
from altcore.surgery.layers import has_transposed_weight
from altcore.surgery.quantizer import Quantizer
from altcore.surgery.stored import StoredWeight


@frozen
class WeightGrid:
    """The grid that a weight is on, or is seen on: a format's values times a scale."""

    format: Format
    """Of single values: a block format's elements."""
    scale: Tensor | None
    """Broadcasts to the weight; None for 1."""
    is_stored: bool
    """The weight lives on the grid; otherwise a product's view of a float32 master does."""


@define(eq=False)
class WeightGrids:
    """The weights of a quantized model that have a grid, and where it is to be had."""

    weights: dict[str, nn.Parameter] = field(factory=dict)
    """By full name, in the model's order, a tied one once."""
    _of: dict[int, StoredWeight | tuple[LayerCasts, Quantizer]] = field(factory=dict)
    """By the weight's identity: what stores it, or the first product that quantizes it."""

    def find(self, parameter: Tensor, *, before_step: bool = False) -> WeightGrid | None:
        """Return the grid of a parameter; see `Quantization.grid_of`."""
        source = self._of.get(id(parameter))
        if isinstance(source, StoredWeight):
            scale = source.scale_before if before_step else source.scale
            return WeightGrid(source.cast.element, scale, is_stored=True)
        return None if source is None else _view_grid(*source)


def weight_grids(
    matrices: Iterable[tuple[str, str, nn.Parameter]],
    stored: dict[str, StoredWeight],
    layers: dict[str, LayerCasts],
) -> WeightGrids:
    """Find the grids of ``matrices``, as `unique_matrices` yields them."""
    views: dict[int, tuple[LayerCasts, Quantizer]] = {}
    for layer in layers.values():
        for own, parameter in layer.module.named_parameters(recurse=False):
            for key in ("weight@fwd", f"weight@fwd/{own}"):
                if parameter.dim() >= 2 and key in layer.quantizers:
                    views.setdefault(id(parameter), (layer, layer.quantizers[key]))
    found = WeightGrids()
    for _, full, parameter in matrices:
        source = stored.get(full) or views.get(id(parameter))
        if source is not None:
            found.weights[full] = parameter
            found._of[id(parameter)] = source
    return found


def _view_grid(layer: LayerCasts, quantizer: Quantizer) -> WeightGrid | None:
    """The grid on which a product saw a master weight; None if that is not the weight's own."""
    cast, scale = quantizer.cast, quantizer.last_scale
    if cast.hadamard or (cast.blocks is not None and scale is None):
        return None
    if scale is not None and scale.ndim == 2 and has_transposed_weight(layer.module):
        scale = scale.t()
    return WeightGrid(cast.element, scale, is_stored=False)
