"""The parts of a model that are quantized, and why the others are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from attrs import field, frozen
from torch import nn

from altcore.quantization.discovery import called, find_layers, matrices, output_head, weights_of
from altcore.quantization.flops import FlopCount
from altcore.quantization.layer import QuantizedLayer
from altcore.recipes import (
    ATTENTION_OPERANDS,
    LOOKUP,
    OF_PARAMETERS,
    OPERANDS,
    PRODUCT_OPERANDS,
    PRODUCTS,
    ROLES,
    Casts,
    Layer,
    Recipe,
    ResolvedRecipe,
    takes_hadamard,
)

NOT_RUN = "its products show when it runs"
"""Of a module that may multiply by its weights, or may not, before the first step."""
LOST = "the model has lost it since it was quantized"
ADDED = "the model got it after it was quantized (see q.change_recipe)"


@frozen
class CoverageRow:
    """One layer."""

    layer: str
    """The layer's name."""
    kind: str
    """linear, conv, embedding, attention, parametrization or other."""
    module: str
    """The name of its class."""
    is_head: bool
    """Whether it belongs to the output head."""
    parameters: int
    """Elements of its parameters of two or more dimensions."""
    operands: tuple[str, ...]
    """Those on a grid: as planned before the first training forward, as it happened after."""
    why_not: str
    """Why the rest is not; empty if all that the recipe asks for is."""
    is_missed: bool
    """Whether the recipe asks for something here that was not met."""


@frozen
class Coverage:
    """The parts of a model that a recipe reaches. ``print`` shows them as a table."""

    rows: tuple[CoverageRow, ...] = field(repr=False)
    """One for each layer."""
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
        """The shares, the head and the layers left out, in one line."""
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
    """Return the role, if both of its operands in products are there; else the operand."""
    role = operand.partition("@")[0]
    of_products = {o for pair in PRODUCTS for o in pair if o.startswith(f"{role}@")}
    return role if operand in of_products <= set(operands) else operand


def coverage_of(
    model: nn.Module,
    recipe: Recipe,
    plan: ResolvedRecipe,
    *,
    head: str | None,
    found: Mapping[str, Layer],
    layers: Mapping[str, QuantizedLayer],
    flops: FlopCount,
) -> Coverage:
    """Compare a model with its recipe; see `altcore.quantization.Quantization.coverage`.

    Args:
        model: the quantized model.
        recipe: its recipe.
        plan: the casts of each layer.
        head: as for `altcore.quantization.discovery.output_head`.
        found: the layers that the model had when it was quantized.
        layers: those of them that are quantized.
        flops: of a training step, if they were counted.
    """
    has_run = any(layer.calls for layer in layers.values())
    rows, on_grid = [], set()
    for name, (layer, module, has_both) in _all_layers(model, head, found, layers).items():
        own = matrices(module)
        quantized = layers.get(name)
        if has_both:
            met, weights = _met(layer, plan[name], quantized, has_run)
            why, is_missed = _why_not(layer, plan, recipe, quantized, set(met), has_run)
        else:
            met, weights, is_missed = (), set(), quantized is not None
            why = LOST if is_missed else ADDED
        if "weight" in weights and "weight" not in own:  # it is computed from other parameters
            computing = getattr(module, "parametrizations", nn.Module())
            on_grid |= {id(p) for m in (module, *computing.modules()) for p in matrices(m).values()}
        on_grid |= {id(p) for n, p in own.items() if n in weights}
        count = sum(p.numel() for p in own.values())
        rows.append(
            CoverageRow(
                name, layer.kind, type(module).__name__, layer.is_head, count, met, why, is_missed
            )
        )
    parameters = {id(p): p.numel() for p in model.parameters()}
    share = sum(n for key, n in parameters.items() if key in on_grid) / (
        sum(parameters.values()) or 1
    )
    last = output_head(model, head)
    total = flops.total
    shares = {o: n / total for o, n in flops.by_operand.items() if total and n}
    return Coverage(
        tuple(rows),
        share,
        flops.both / total if total else None,
        {o: shares[o] for o in OPERANDS if o in shares},
        next((n for n, m in model.named_modules() if m is last), None),
    )


def missed(recipe: Recipe, plan: ResolvedRecipe, coverage: Coverage) -> list[str]:
    """Return a sentence for each thing that the recipe asks for and the model did not meet."""
    asked = {o.partition("@")[0] for r in recipe.rules for o, c in r.casts.items() if c}
    planned = {o.partition("@")[0] for p in plan.values() for o, c in p.items() if c}
    nowhere = [
        f"the recipe's role {role} reaches no layer of the model"
        for role in ROLES
        if role in asked - planned
    ]
    return nowhere + [
        f"{called(row.layer)} ({row.module}) is not quantized as the recipe asks: "
        f"{row.why_not} (print(q.coverage()) shows all)"
        for row in coverage.rows
        if row.is_missed
    ]


def _all_layers(
    model: nn.Module,
    head: str | None,
    found: Mapping[str, Layer],
    quantized: Mapping[str, QuantizedLayer],
) -> dict[str, tuple[Layer, nn.Module, bool]]:
    """Return the model's layers, and quantized ones that it has lost.

    By name: the layer, its module, and whether both the model and the quantization have it.
    """
    now, present = find_layers(model, head), {id(m) for m in model.modules()}
    layers = {}
    for name, one in quantized.items():
        layers[name] = found[name], one.module, id(one.module) in present
    known = {id(one.module) for one in quantized.values()}
    for name, (layer, module) in now.items():
        if id(module) not in known:
            layers.setdefault(name, (layer, module, name in found))
    return {name: layers[name] for name in (*found, *now) if name in layers}


def _met(
    layer: Layer, casts: Casts, quantized: QuantizedLayer | None, has_run: bool
) -> tuple[tuple[str, ...], set[str]]:
    """Return a layer's operands on a grid, and the names of the weights among them."""
    if quantized is None:
        return tuple(o for o in ("optimizer_state",) if casts[o]), set()
    met, weights = set(quantized.met), set(quantized.stored)
    for operand in ("weight@fwd", LOOKUP):
        weights |= quantized.met.get(operand, set())
    if not has_run and quantized.kind != "other":  # which may multiply by its weights, or may not
        met |= {o for o in (*PRODUCT_OPERANDS, LOOKUP, *ATTENTION_OPERANDS) if casts[o]}
        is_product = casts["weight@fwd"] or casts[LOOKUP]
        weights |= set(weights_of(quantized.module)) if is_product else set()
    met |= {o for o in OF_PARAMETERS if casts[o]}
    return tuple(o for o in OPERANDS if o in met), weights


def _why_not(
    layer: Layer,
    plan: ResolvedRecipe,
    recipe: Recipe,
    quantized: QuantizedLayer | None,
    met: set[str],
    has_run: bool,
) -> tuple[str, bool]:
    """Say why not all of a layer's operands are on a grid, and whether that misses the recipe.

    A module that may multiply by its weights, or may not, misses nothing if it does not, unless the
    recipe has its name.
    """
    casts = plan[layer.name]
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
        is_named = any(rule.pattern == layer.name for rule in recipe.rules)
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
    transformed = {o for own in plan.values() for o, c in own.items() if c and c.hadamard}
    if any(casts[o] and not takes_hadamard(layer.kind, o) for o in transformed):
        told.append("no Hadamard transform (a convolution sums along several axes)")
    return "; ".join(told), bool(rest)
