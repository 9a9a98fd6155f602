"""Build the parts of a quantized model: quantizers, stored weights and patched layers.

Each function takes the parts that there were before, and keeps those that stay the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from altcore.quantization.checks import check_casts
from altcore.quantization.context import Context
from altcore.quantization.discovery import (
    ParameterSlot,
    layer_kind,
    matrices,
    unique_matrices,
    weights_of,
)
from altcore.quantization.layer import QuantizedLayer
from altcore.quantization.patched_forward import (
    PatchedForward,
    check_unpatched,
    restore_forwards,
)
from altcore.quantization.product import PAIRS
from altcore.quantization.quantizer import Quantizer
from altcore.quantization.site import Site
from altcore.quantization.stored import StoredWeight
from altcore.recipes import (
    ATTENTION_OPERANDS,
    LOOKUP,
    PRODUCT_OPERANDS,
    Cast,
    Casts,
    Recipe,
    ResolvedRecipe,
)

PATCHED = (*PRODUCT_OPERANDS, LOOKUP, "stored_weight", *ATTENTION_OPERANDS)
"""The operands for which a layer's forward is patched."""


def casts_by_site(
    model: nn.Module, recipe: Recipe, plan: ResolvedRecipe, context: Context
) -> dict[Site, Cast]:
    """Return the cast of each quantizer that a plan needs.

    Raises `BadInput` for a layer that cannot take its casts, or that is quantized already.
    """
    wanted: dict[Site, Cast] = {}
    for name, casts in plan.items():
        module = model.get_submodule(name)
        check_unpatched(name, module, casts, context)
        check_casts(recipe, name, module, casts)
        for own in weights_of(module):
            wanted |= _of_weight(name, module, own, casts)
        wanted |= {Site(name, o): cast for o in ATTENTION_OPERANDS if (cast := casts[o])}
    for name, full, _ in unique_matrices(model):
        if cast := plan[name]["weight_gradient"]:
            wanted[Site(name, "weight_gradient", full)] = cast
    return wanted


def _of_weight(name: str, module: nn.Module, own: str, casts: Casts) -> dict[Site, Cast]:
    """Return the casts of the operands in the products by one weight."""
    wanted: dict[Site, Cast] = {}
    kind = layer_kind(module)
    for first, second in PAIRS.values():
        cast, other = casts[first], casts[second]
        if cast:
            wanted[Site.of(name, kind, first, own)] = cast
        if other and (other != cast or other.has_axis):
            wanted[Site.of(name, kind, second, own)] = other
    if (cast := casts[LOOKUP]) and own in module._parameters:
        wanted[Site.of(name, kind, LOOKUP, own)] = cast
    return wanted


def make_quantizers(
    wanted: Mapping[Site, Cast], before: Iterable[Quantizer], context: Context
) -> dict[Site, Quantizer]:
    """Return a quantizer for each site; one that has the same cast as before keeps its state."""
    kept = {q.site: q for q in before if wanted.get(q.site) == q.cast}
    return {site: kept.get(site) or Quantizer(site, cast, context) for site, cast in wanted.items()}


def make_stored_weights(
    model: nn.Module,
    plan: ResolvedRecipe,
    before: Mapping[str, StoredWeight],
    context: Context,
) -> dict[str, StoredWeight]:
    """Round the weights that a plan stores, in place; return them by full name."""
    stored = {}
    for name, full, _ in unique_matrices(model):
        cast = plan[name]["stored_weight"]
        if cast is None:
            continue
        old, slot = before.get(full), ParameterSlot.of(model, full)
        if old is not None and (old.cast, old.slot.module) == (cast, slot.module):
            stored[full] = old
        else:
            stored[full] = StoredWeight(full, name, slot, cast, context)
    return stored


def patch_layers(
    model: nn.Module,
    plan: ResolvedRecipe,
    quantizers: Mapping[Site, Quantizer],
    stored: Mapping[str, StoredWeight],
    before: Mapping[str, QuantizedLayer],
    context: Context,
) -> dict[str, QuantizedLayer]:
    """Patch the forward of each layer that has a cast in it, and restore those of the others.

    A layer keeps its patch while it has a cast, so that code compiled around it stays valid.
    """
    wanted = {
        name: model.get_submodule(name)
        for name, casts in plan.items()
        if any(casts[o] is not None for o in PATCHED)
    }
    # A name may be another module's by now.
    kept = {n: x for n, x in before.items() if x.module is wanted.get(n)}
    restore_forwards({n: x for n, x in before.items() if n not in kept})
    stored_by_id = {id(w.slot.parameter): w for w in stored.values()}
    own: dict[str, dict[Site, Quantizer]] = {name: {} for name in wanted}
    for site, quantizer in quantizers.items():
        if site.layer in own:
            own[site.layer][site] = quantizer
    layers: dict[str, QuantizedLayer] = {}
    for name, module in wanted.items():
        layer = kept.get(name)
        if layer is None:
            layer = QuantizedLayer(name, module, plan[name], own[name], context, module.forward)
            module.forward = PatchedForward(layer)
        layer.casts, layer.quantizers, layer.siblings = plan[name], own[name], layers
        layer.met, layer.calls, layer.has_learned = {}, 0, False
        parameters = matrices(module).items()
        layer.stored = {n: stored_by_id[id(p)] for n, p in parameters if id(p) in stored_by_id}
        layers[name] = layer
    return layers


def state_casts(model: nn.Module, plan: ResolvedRecipe) -> dict[str, tuple[ParameterSlot, Cast]]:
    """Return the casts of the optimizer's state, by the full name of its parameter."""
    return {
        full: (ParameterSlot.of(model, full), cast)
        for name, full, _ in unique_matrices(model)
        if (cast := plan[name]["optimizer_state"])
    }
