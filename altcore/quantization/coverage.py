"""What of a model is quantized, and what is not and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from attrs import field, frozen
from torch import nn

from altcore.quantization.layers import find_heads, find_layers, matrices, weights_of
from altcore.recipes import (
    ATTENTION_OPERANDS,
    LOOKUP,
    OPERANDS,
    PRODUCT_OPERANDS,
    PRODUCTS,
    STORED,
    Layer,
    takes_hadamard,
)

if TYPE_CHECKING:
    from altcore.quantization.quantization import Quantization


NOT_RUN = "its products show when it runs"
"""Of a module that may multiply by its weights, or may not, before the first step."""


@frozen
class CoverageRow:
    """One layer."""

    layer: str
    kind: str
    """Linear, conv, embedding, attention, ...; see `altcore.recipes.Layer`."""
    module: str
    """The name of its class."""
    is_head: bool
    parameters: int
    """Elements of its parameters of two or more dimensions."""
    operands: tuple[str, ...]
    """What is quantized: as planned before the first training forward, as it happened after."""
    why_not: str
    """Why the rest is not; empty where all that the recipe asks for is."""
    is_missed: bool
    """Whether the recipe asks for something here that was not met."""


@frozen
class Coverage:
    """What a recipe reaches in a model. ``print`` shows it as a table."""

    rows: tuple[CoverageRow, ...] = field(repr=False)
    parameter_share: float
    """Share of the model's parameters that are on a grid, stored or in a product."""
    flop_share: float | None
    """Share of a training step's FLOPs in products with both operands on a grid; None until
    `Quantization.count_flops` has run."""
    flop_share_by_operand: Mapping[str, float]
    """Share of the step's FLOPs in products that have this operand on a grid."""
    head: str | None
    """The layer that was taken for the output head."""

    @property
    def line(self) -> str:
        """The shares, the head and what is left out, in one line."""
        shares = f"{self.parameter_share:.1%} of parameters"
        if self.flop_share is not None:
            shares += f", {self.flop_share:.1%} of FLOPs"
        head = "no output head" if self.head is None else f"head: {self.head}"
        line = f"quantized: {shares}; {head}; left out: {self.left_out or 'nothing'}"
        unknown = _count(row.kind for row in self.rows if row.why_not == NOT_RUN)
        return line + (f"; known after the first step: {unknown}" if unknown else "")

    @property
    def left_out(self) -> str:
        """The layers but the head of which nothing is quantized, counted by kind."""
        return _count(
            row.kind
            for row in self.rows
            if not (row.operands or row.is_head or row.kind == "parametrization")
            and row.why_not != NOT_RUN
        )

    def __str__(self) -> str:
        head = ("layer", "module", "parameters", "quantized", "why not")
        table = [head, *map(_cells, self.rows)]
        widths = [max(len(row[i]) for row in table) for i in range(len(head))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in table]
        shares = [f"{o} {share:.1%}" for o, share in self.flop_share_by_operand.items()]
        return "\n".join(
            [
                *(line.rstrip() for line in lines),
                self.line,
                *(["share of FLOPs by operand: " + ", ".join(shares)] if shares else []),
            ]
        )


def _count(kinds: Iterable[str]) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in Counter(kinds).items())


def _cells(row: CoverageRow) -> tuple[str, ...]:
    shown = dict.fromkeys(_short(o, row.operands) for o in row.operands)
    cells = row.layer or "(model)", row.module, f"{row.parameters:,}", ", ".join(shown) or "-"
    return *cells, row.why_not


def _short(operand: str, operands: tuple[str, ...]) -> str:
    """A role, where both of its operands in products are there; else the operand."""
    role = operand.partition("@")[0]
    of_products = {o for pair in PRODUCTS for o in pair if o.startswith(f"{role}@")}
    return role if operand in of_products <= set(operands) else operand


def coverage_of(q: Quantization) -> Coverage:
    """See `Quantization.coverage`."""
    has_run = any(layer.calls for layer in q.layers.values())
    rows, on_grid = [], set()
    for name, (layer, module, is_present) in _layers(q).items():
        own = matrices(module)
        met, weights, why, is_missed = _state(q, layer, is_present, has_run)
        if "weight" in weights and "weight" not in own:  # it is computed from what there is
            computing = getattr(module, "parametrizations", nn.Module())
            on_grid |= {id(p) for m in (module, *computing.modules()) for p in matrices(m).values()}
        on_grid |= {id(p) for n, p in own.items() if n in weights}
        count = sum(p.numel() for p in own.values())
        rows.append(
            CoverageRow(
                name, layer.kind, type(module).__name__, layer.is_head, count, met, why, is_missed
            )
        )
    parameters = {id(p): p.numel() for p in q.model.parameters()}
    share = sum(n for key, n in parameters.items() if key in on_grid) / (
        sum(parameters.values()) or 1
    )
    heads = find_heads(q.model, q.head)
    total = q.flop_total
    shares = {o: n / total for o, n in q.flop_count.by_operand.items() if total and n}
    return Coverage(
        tuple(rows),
        share,
        q.flop_count.both / total if total else None,
        {o: shares[o] for o in OPERANDS if o in shares},
        next((n for n, m in q.model.named_modules() if heads and m is heads[0]), None),
    )


def _layers(q: Quantization) -> dict[str, tuple[Layer, nn.Module, bool]]:
    """Return the layers of the model, and those quantized ones that it has no more.

    By name: the layer, its module, and whether both the model and the quantization have it.
    """
    now, present = find_layers(q.model, q.head), {id(m) for m in q.model.modules()}
    layers = {}
    for name, quantized in q.layers.items():
        layers[name] = q.found[name], quantized.module, id(quantized.module) in present
    known = {id(quantized.module) for quantized in q.layers.values()}
    for name, (layer, module) in now.items():
        if id(module) not in known:
            layers.setdefault(name, (layer, module, name in q.found))
    return {name: layers[name] for name in (*q.found, *now) if name in layers}


def _state(
    q: Quantization, layer: Layer, is_present: bool, has_run: bool
) -> tuple[tuple[str, ...], set[str], str, bool]:
    """Return operands on a grid, the weights among them, why not all, and whether one is missed."""
    if is_present:
        met, weights = _met(q, layer.name, has_run)
        return met, weights, *_why_not(q, layer, set(met), has_run)
    if layer.name in q.layers:
        return (), set(), "the model has lost it since it was quantized", True
    return (), set(), "the model got it after it was quantized (see q.change_recipe)", False


def _met(q: Quantization, name: str, has_run: bool) -> tuple[tuple[str, ...], set[str]]:
    """Return a layer's operands on a grid, and the names of the weights among them."""
    layer, casts = q.layers.get(name), q.plan[name]
    if layer is None:
        return tuple(o for o in ("optimizer_state",) if casts[o]), set()
    met, weights = set(layer.met), set(layer.stored)
    for operand in ("weight@fwd", LOOKUP):
        weights |= layer.met.get(operand, set())
    if not has_run and layer.kind != "other":  # which may multiply by its weights, or may not
        met |= {o for o in (*PRODUCT_OPERANDS, LOOKUP, *ATTENTION_OPERANDS) if casts[o]}
        weights |= set(weights_of(layer.module)) if casts["weight@fwd"] or casts[LOOKUP] else set()
    met |= {o for o in ("weight_gradient", *STORED) if casts[o]}
    return tuple(o for o in OPERANDS if o in met), weights


def _why_not(q: Quantization, layer: Layer, met: set[str], has_run: bool) -> tuple[str, bool]:
    """Say why not all of a layer's operands are on a grid, and whether that misses the recipe.

    A module that may multiply by its weights, or may not, misses nothing if it does not, unless the
    recipe has its name.
    """
    casts, quantized = q.plan[layer.name], q.layers.get(layer.name)
    if not any(casts.values()):
        if layer.is_head:
            return "the output head", False
        if layer.kind == "embedding":
            return "looked up, not multiplied: its role is weight@lookup", False
        if layer.kind == "parametrization":
            return "it computes the weight of the layer that it is in", False
        return "left out by the recipe", False
    missing = {o for o in OPERANDS if casts[o] and o not in met}
    if "weight@fwd" in met:  # the role weight asks for either
        missing.discard(LOOKUP)
    if not has_run or quantized is None:
        return NOT_RUN if missing else "", False
    if missing and not quantized.calls and not quantized.met:
        return "it never ran", True
    if missing >= set(ATTENTION_OPERANDS):
        return "it computes no attention that can be seen", layer.kind == "attention"
    products = {o for o in PRODUCT_OPERANDS if casts[o]}
    if products and missing >= products:
        is_named = any(rule.pattern == layer.name for rule in q.recipe.rules)
        is_missed = layer.kind != "other" or (is_named and LOOKUP not in met)
        return "its weights were in no product", is_missed
    # A frozen layer has no gradients, and an input that wants none no product for them.
    reasons = {
        "its input wants no gradient": {o for o in missing if o.endswith("@dgrad")},
        "its weights want no gradient": {o for o in missing if o.endswith("@wgrad")},
    }
    told = [reason for reason, operands in reasons.items() if operands]
    if told and not quantized.has_learned:
        told = ["no gradient reached it"]
    rest = missing.difference(*reasons.values())
    if rest:
        told.append(f"not met: {', '.join(o for o in OPERANDS if o in rest)}")
    transformed = {o for plan in q.plan.values() for o, c in plan.items() if c and c.hadamard}
    if any(casts[o] and not takes_hadamard(layer.kind, o) for o in transformed):
        told.append("no Hadamard transform (a convolution sums along several axes)")
    return "; ".join(told), bool(rest)
