"""Quantization of a whole model by a recipe; the engine and people's own loops use the same.

State dict keys, parameters and types of the model stay as they are: a quantized layer's
``forward`` is shadowed on the instance, and `Quantization.remove` takes the shadow away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from attrs import define, field
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from altcore.blocks import AnyFormat
from altcore.config import read_mapping
from altcore.errors import BadInput
from altcore.numerics import COUNTS
from altcore.recipe import (
    ATTENTION_OPERANDS,
    PRODUCT_OPERANDS,
    Cast,
    Plan,
    Recipe,
    plan_to_plain,
)
from altcore.recipes import (
    NAMED,
    SUFFIXES,
    named,
    parse,
    plan_from_plain,
    takes_format,
    with_format,
)
from altcore.registry import get_format
from altcore.surgery.casts import LayerCasts, StandIn
from altcore.surgery.checks import check_casts, check_effect, with_ties
from altcore.surgery.compute import COMPUTES, choose_compute
from altcore.surgery.layers import (
    SlowPath,
    find_layers,
    is_conv,
    is_linear,
    matrices,
    slow_paths,
    unique_matrices,
)
from altcore.surgery.product import PAIRS
from altcore.surgery.quantizer import Clock, Quantizer
from altcore.surgery.stored import STALL, StoredWeight, store_optimizer_state
from altcore.surgery.weight_grids import Owner, WeightGrid, WeightGrids, weight_grids

FORWARD_OPERANDS = (*PRODUCT_OPERANDS, "stored_weight", *ATTENTION_OPERANDS)
"""Those for which a layer needs a stand-in for its forward."""


@define(eq=False)
class Quantization:
    """A model under a recipe. Made by `quantize_model`; usable as a context."""

    model: nn.Module
    recipe: Recipe
    asked_compute: str = "auto"
    clock: Clock = field(factory=Clock)
    plan: Plan = field(init=False)
    compute: str = field(init=False)
    """In which type products run: what was asked for, or what ``auto`` came to."""
    layers: dict[str, LayerCasts] = field(init=False, factory=dict)
    formats: dict[str, AnyFormat] = field(init=False, factory=dict)
    """Every format there has been: from Python it may be one that no distribution names."""
    stored: dict[str, StoredWeight] = field(init=False, factory=dict)
    grids: WeightGrids = field(init=False, factory=WeightGrids)
    quantizers: list[Quantizer] = field(init=False, factory=list)
    counts: Tensor = field(init=False)
    """int64 (quantizers, 4): what each quantizer met since `begin_step`; see `COUNTS`."""
    errors: Tensor = field(init=False)
    """float64 (quantizers, 2): sums of squared errors and of squares, where asked for."""
    stored_moves: Tensor | None = field(init=False, default=None)
    """int64 (stored weights, 4): the last `store`; see `STALL`."""
    view_moves: Tensor | None = field(init=False, default=None)
    """int64 (views, 2): masters that moved, and those whose view did not."""
    view_layers: list[str] = field(init=False, factory=list)
    """The layers of the rows of `view_moves`."""
    is_tracking: bool = field(init=False, default=False)
    """Whether views of master weights are kept for `measure_views`."""
    is_off: bool = field(init=False, default=False)
    flops: int | None = field(init=False, default=None)
    _state_casts: dict[str, tuple[Owner, Cast]] = field(init=False, factory=dict)
    _hooks: list[RemovableHandle | SlowPath] = field(init=False, factory=list)

    def __attrs_post_init__(self) -> None:
        self._take(self.recipe)

    # Building and changing -------------------------------------------------------------------

    def _take(self, recipe: Recipe) -> None:
        plan = recipe.resolve([layer for layer, _ in find_layers(self.model).values()])
        check_effect(recipe, plan)
        self._build(recipe, with_ties(recipe, self.model, plan, before={}))

    def _build(self, recipe: Recipe, plan: Plan) -> None:
        wanted = self._wanted_quantizers(recipe, plan)  # First, since it raises.
        kept = {q.name: q for q in self.quantizers}
        for hook in self._hooks:
            hook.remove()
        self.recipe, self.plan, self._hooks = recipe, plan, []
        self.formats |= {c.format.name: c.format for x in plan.values() for c in x.values() if c}
        first = next(self.model.parameters(), None)
        device = torch.device("cpu") if first is None else first.device
        self.compute = choose_compute(self.asked_compute, plan, device)
        self.counts = torch.zeros(len(wanted), len(COUNTS), dtype=torch.int64, device=device)
        self.errors = torch.zeros(len(wanted), 2, dtype=torch.float64, device=device)
        made: dict[str, Quantizer] = {}
        for i, (name, cast) in enumerate(wanted.items()):
            old = kept.get(name)
            row = (self.counts[i], self.errors[i])
            made[name] = (
                old if old and old.cast == cast else Quantizer(name, cast, self.clock, *row)
            )
            made[name].counts, made[name].errors = row
        self.quantizers = list(made.values())
        self._shadow_layers(made)
        self._hooks += slow_paths(self.model) if self.layers else []
        self._hook_weight_gradients(made)
        self._store_weights()
        self.grids = weight_grids(self.model, self.stored, self.layers)
        self._state_casts = {
            full: (Owner.of(self.model, full), state)
            for name, full, _ in unique_matrices(self.model)
            if (state := plan[name]["optimizer_state"])
        }

    def _shadow_layers(self, made: Mapping[str, Quantizer]) -> None:
        """Stand in for the forward of each layer that has a cast in it.

        A layer keeps its stand-in while it has one, so that code compiled around it stays valid.
        """
        before, self.layers = self.layers, {}
        for name, casts in self.plan.items():
            prefix = f"{name}:"
            own = {k.removeprefix(prefix): q for k, q in made.items() if k.startswith(prefix)}
            if not any(casts[o] is not None for o in FORWARD_OPERANDS):
                continue
            layer = before.pop(name, None)
            if layer is None:
                module = self.model.get_submodule(name)
                layer = LayerCasts(name, module, casts, own, self, module.forward)
                module.forward = StandIn(layer)
            layer.casts, layer.quantizers = casts, own
            self.layers[name] = layer
        _restore_forwards(before)

    def _wanted_quantizers(self, recipe: Recipe, plan: Plan) -> dict[str, Cast]:
        wanted: dict[str, Cast] = {}
        for name, casts in plan.items():
            module = self.model.get_submodule(name)
            check_casts(recipe, name, module, casts, owner=self)
            if is_linear(module) or is_conv(module):
                for first, second in PAIRS.values():
                    cast, other = casts[first], casts[second]
                    wanted |= {f"{name}:{first}": cast} if cast else {}
                    if other and (other != cast or other.has_axis):
                        wanted[f"{name}:{second}"] = other
            elif cast := casts["weight@fwd"]:
                wanted |= {f"{name}:weight@fwd/{own}": cast for own in matrices(module)}
            wanted |= {f"{name}:{o}": c for o in ATTENTION_OPERANDS if (c := casts[o])}
        for name, full, _ in unique_matrices(self.model):
            if cast := plan[name]["weight_gradient"]:
                wanted[f"{name}:weight_gradient/{full}"] = cast
        return wanted

    def _hook_weight_gradients(self, made: Mapping[str, Quantizer]) -> None:
        for name, full, parameter in unique_matrices(self.model):
            quantizer = made.get(f"{name}:weight_gradient/{full}")
            if quantizer is not None and parameter.requires_grad:
                self._hooks.append(parameter.register_hook(self._gradient_hook(quantizer)))

    def _gradient_hook(self, quantizer: Quantizer) -> Callable[[Tensor], Tensor]:
        return lambda g: g if self.is_off else quantizer.fake(g, training=True)

    def _store_weights(self) -> None:
        before, self.stored = self.stored, {}
        self.stored_moves = None
        for name, full, parameter in unique_matrices(self.model):
            cast = self.plan[name]["stored_weight"]
            if cast is not None:
                old = before.get(full)
                self.stored[full] = (
                    old
                    if old is not None and old.cast == cast
                    else StoredWeight(full, name, parameter, cast, self.clock)
                )

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The quantized layers, by name."""
        return {name: layer.module for name, layer in self.layers.items()}

    def change(self, plan: Plan) -> dict[str, float]:
        """Take another plan, from now on.

        A changed stored format re-encodes its values at a fresh scale; returns the relative
        error that this made, by parameter. Delayed scaling starts a new history where its cast
        changed; optimizer moments stay. As in a recipe, attention's operands and those of
        products are left out where they do not belong. Raises `BadInput` if that leaves nothing,
        and for what a layer cannot take; nothing is changed then.
        """
        if not isinstance(plan, Mapping):
            raise BadInput(f"a plan is needed, not {plan!r:.60}; change_recipe takes a recipe")
        before = dict(self.stored)
        layers = {layer.name: layer for layer, _ in find_layers(self.model).values()}
        possible = {
            name: {o: c if layers[name].takes(o) else None for o, c in casts.items()}
            for name, casts in plan.items()
        }
        if plan != self.plan == possible:
            raise BadInput(f"recipe {self.recipe.name}: no layer has what the change asks for")
        plan = with_ties(self.recipe, self.model, possible, before=self.plan)
        self._build(self.recipe, plan)
        return self._encoding_errors(before)

    def change_recipe(
        self,
        recipe: str | Path | AnyFormat | Recipe | Mapping[str, Any],
        *,
        format: str | AnyFormat | None = None,
    ) -> dict[str, float]:
        """Take another recipe, from now on: what `quantize_model` takes, and with its errors.

        The optimizer stays as it is. Returns what `change` does; nothing is changed by an error.
        """
        before = dict(self.stored)
        self._take(_as_recipe(recipe, None if format is None else get_format(format)))
        return self._encoding_errors(before)

    def _encoding_errors(self, before: Mapping[str, StoredWeight]) -> dict[str, float]:
        return {
            name: float(weight.error)
            for name, weight in self.stored.items()
            if before.get(name) is not weight
        }

    def remove(self) -> None:
        """Take everything back; stored weights keep the values that they have."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        _restore_forwards(self.layers)
        self.layers, self.stored, self.grids = {}, {}, WeightGrids()
        self._state_casts = {}

    def __enter__(self) -> Quantization:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    # The step --------------------------------------------------------------------------------

    def begin_step(self, step: int, *, tracking: bool = False, errors: bool = False) -> None:
        """Start a step: counters at zero, random bits of stochastic rounding those of ``step``.

        With ``tracking`` the views of master weights are kept for `measure_views`; with
        ``errors`` the quantizers sum the squares of their errors in `errors`.
        """
        self.clock.step, self.is_tracking = step, tracking
        self.clock.measures_errors = errors
        self.counts.zero_()
        self.errors.zero_()

    def store(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Put stored weights and optimizer state back on their grids, after the optimizer.

        Also moves the random bits of stochastic rounding on by a step.
        """
        if self.stored:
            self.stored_moves = torch.stack([w.store() for w in self.stored.values()])
        if optimizer is not None:
            casts = {n: (owner.parameter, cast) for n, (owner, cast) in self._state_casts.items()}
            store_optimizer_state(optimizer, casts, self.clock)
        self.clock.step += 1

    def measure_views(self) -> None:
        """Count the masters that moved while their quantized view did not, since the forward."""
        views = [(n, v) for n, layer in self.layers.items() for v in layer.views.values()]
        self.view_layers = [name for name, _ in views]
        self.view_moves = torch.stack([v.movement() for _, v in views]) if views else None
        for layer in self.layers.values():
            layer.views.clear()

    @contextmanager
    def off(self) -> Iterator[None]:
        """Run the model's own forward on the same weights, unquantized."""
        before, self.is_off = self.is_off, True
        try:
            yield
        finally:
            self.is_off = before

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let no scale, counter or call number move: for evaluation and probes."""
        before, self.clock.training = self.clock.training, False
        try:
            yield
        finally:
            self.clock.training = before

    # What was met ----------------------------------------------------------------------------

    def met_rates(self) -> dict[str, Tensor | None]:
        """Return what quantizers met in this step, as device scalars; None where impossible.

        ``overflow_rate`` is None where every scale comes from the tensor's own amax: overflow is
        then impossible by construction.
        """
        can = [i for i, q in enumerate(self.quantizers) if not q.cast.uses_amax]
        total, over = self.counts.sum(0), self.counts[can].sum(0)
        return {
            "overflow_rate": _share(over[1], over[0]) if can else None,
            "flushed_rate": _share(total[2], total[0]) if self.quantizers else None,
        }

    def stall_rates(self) -> dict[str, Tensor]:
        """Return the stall rates of the last update, of stored weights and of views apart."""
        rates = {}
        if self.stored_moves is not None:
            updates, stalled = self.stored_moves.sum(0)[:2]
            rates["stored_stall_rate"] = _share(stalled, updates)
        if self.view_moves is not None:
            moved, stalled = self.view_moves.sum(0)
            rates["view_stall_rate"] = _share(stalled, moved)
        return rates

    def nonfinite(self) -> Tensor:
        """Return how many non-finite values quantizers met in this step, 0-dim."""
        return self.counts[:, 3].sum()

    def stats(self) -> list[dict[str, Any]]:
        """Return what each quantizer and stored weight met in the last step, as host numbers.

        ``sqnr_db`` is None where the step did not measure errors (see `begin_step`).
        """
        rows: list[dict[str, Any]] = []
        met = zip(self.quantizers, self.counts.tolist(), self.errors.tolist(), strict=True)
        for quantizer, counts, errors in met:
            layer, _, operand = quantizer.name.partition(":")
            cast = quantizer.cast
            seen = dict(zip(COUNTS, counts, strict=True))
            rows.append(
                {
                    "layer": layer,
                    "operand": operand.partition("/")[0],
                    "format": cast.format.name,
                    **seen,
                    "overflow": None if cast.uses_amax else seen["overflow"],
                    "sqnr_db": _decibels(*errors),
                }
            )
        moves = [] if self.stored_moves is None else self.stored_moves.tolist()
        # Before the first update there are stored weights and no moves.
        for weight, counts in zip(self.stored.values(), moves, strict=False):
            rows.append(
                {
                    "layer": weight.layer,
                    "operand": "stored_weight",
                    "format": weight.cast.format.name,
                    "scale": float(weight.scale),
                    **dict(zip(STALL, counts, strict=True)),
                }
            )
        views = [] if self.view_moves is None else self.view_moves.tolist()
        for name, (moved, stalled) in zip(self.view_layers, views, strict=True):
            view = {"moved": moved, "stalled": stalled}
            rows.append({"layer": name, "operand": "weight view", **view})
        return rows

    def grid_of(self, parameter: Tensor, *, before_step: bool = False) -> WeightGrid | None:
        """Return the grid of a parameter, or None where it has none.

        The scale is the current one of a stored weight, with ``before_step`` that before the
        last `store`; for a view that of the last training forward.
        """
        return self.grids.find(parameter, before_step=before_step)

    def parameter_share(self) -> float:
        """Return the share of parameters whose weight is quantized, stored or in a product."""
        total = on_grid = 0
        for parameter in self.model.parameters():
            total += parameter.numel()
        for name, _, parameter in unique_matrices(self.model):
            casts = self.plan[name]
            if casts["stored_weight"] or casts["weight@fwd"]:
                on_grid += parameter.numel()
        return on_grid / total if total else 0.0

    # State -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return plan, scale histories and stored scales: tensors and plain data only."""
        return {
            "plan": plan_to_plain(self.plan),
            "step": self.clock.step,
            "histories": {
                q.name: q.history.clone() for q in self.quantizers if q.history is not None
            },
            "stored": {name: w.state_dict() for name, w in self.stored.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Restore plan, model ``weights`` and scales, in the order in which they depend."""
        if plan_to_plain(self.plan) != state["plan"]:
            self._build(self.recipe, plan_from_plain(state["plan"], self.formats))
        self.model.load_state_dict(weights)
        self.clock.step = state["step"]
        for quantizer in self.quantizers:
            history = state["histories"].get(quantizer.name)
            quantizer.history = None if history is None else history.to(self.counts.device).clone()
        for name, weight in self.stored.items():
            weight.load_state_dict(state["stored"][name])


def _restore_forwards(layers: Mapping[str, LayerCasts]) -> None:
    for layer in layers.values():
        vars(layer.module).pop("forward", None)
        if getattr(layer.own_forward, "__func__", None) is not type(layer.module).forward:
            layer.module.forward = layer.own_forward


def _decibels(error: float, signal: float) -> float | None:
    """Signal to quantization noise; None where nothing was measured or nothing was lost."""
    return 10 * math.log10(signal / error) if error > 0 and signal > 0 else None


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return part.double() / whole.clamp(min=1)


def quantize_model(
    model: nn.Module,
    recipe: str | Path | AnyFormat | Recipe | Mapping[str, Any],
    *,
    format: str | AnyFormat | None = None,
    compute: str = "auto",
    seed: int = 0,
) -> Quantization:
    """Quantize ``model`` in place by a recipe; returns the handle that takes it back.

    ``recipe`` is a format or its name (the recipe ``master`` in it), a recipe's name, its
    mapping, or a .yaml file; ``format`` is what a recipe calls FORMAT. ``compute`` is in which
    type products run; see `altcore.surgery.compute.COMPUTES`. Raises `BadInput` for an unknown
    name, a pattern that matches no layer, or a layer that cannot take what the recipe asks.
    """
    if not isinstance(model, nn.Module):
        raise BadInput(f"model: a torch.nn.Module is needed, not {model!r:.60}")
    if compute not in COMPUTES:
        raise BadInput(f"compute: {compute!r} is none of {', '.join(COMPUTES)}")
    chosen = None if format is None else get_format(format)
    return Quantization(model, _as_recipe(recipe, chosen), compute, Clock(seed))


def _as_recipe(
    recipe: str | Path | AnyFormat | Recipe | Mapping[str, Any], fmt: AnyFormat | None
) -> Recipe:
    if isinstance(recipe, str) and recipe in NAMED:
        if fmt is None and takes_format(recipe):
            raise BadInput(f"the recipe {recipe} needs a format: give one, as format='E4M3'")
        return named(recipe, fmt)
    if isinstance(recipe, Mapping):
        return parse(with_format(recipe, fmt), "given")
    if isinstance(recipe, Path) or (isinstance(recipe, str) and recipe.endswith(SUFFIXES)):
        data = read_mapping(recipe, "recipe")
        return parse(with_format(data, fmt), Path(recipe).stem, f" in {recipe}")
    if fmt is not None:
        raise BadInput(f"format {fmt.name}: only a recipe that says FORMAT takes one")
    return recipe if isinstance(recipe, Recipe) else named("master", get_format(recipe))
