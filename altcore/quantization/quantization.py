"""Quantization of a whole model by a recipe; the engine and people's own loops use the same.

State dict keys, parameters and types of the model stay as they are: a quantized layer's
``forward`` is patched on the instance, and `Quantization.remove` takes the patch away.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from attrs import define, field
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from altcore.errors import BadInput
from altcore.formats import AnyFormat, check_digests, digests_of
from altcore.numerics import COUNTS
from altcore.python_values import as_python
from altcore.quantization import statistics
from altcore.quantization.checks import (
    check_casts,
    check_effect,
    check_model,
    check_unflattened,
    check_whole,
    with_ties,
)
from altcore.quantization.compute import choose_compute
from altcore.quantization.coverage import Coverage, coverage_of
from altcore.quantization.flop_count import FlopCount
from altcore.quantization.flops import count_flops
from altcore.quantization.following import followable, steps_as
from altcore.quantization.gradient_rounding import GradientRounding, ModelHook
from altcore.quantization.layer import QuantizedLayer
from altcore.quantization.layers import (
    AUTO,
    ParameterSlot,
    SlowPath,
    called,
    find_layers,
    kind_of,
    matrices,
    site,
    slow_paths,
    unique_matrices,
    weights_of,
)
from altcore.quantization.patched_forward import PatchedForward, restore_forwards
from altcore.quantization.product import PAIRS
from altcore.quantization.quantizer import Clock, Quantizer
from altcore.quantization.stored import StoredWeight, store_optimizer_state
from altcore.quantization.weight_grids import WeightGrid, WeightGrids, weight_grids
from altcore.recipes import (
    ATTENTION_OPERANDS,
    LOOKUP,
    PRODUCT_OPERANDS,
    ROLES,
    Cast,
    GivenRecipe,
    Layer,
    Plan,
    Recipe,
    as_recipe,
    formats_in,
    plan_from_plain,
    plan_to_plain,
    some,
)

PATCHED = (*PRODUCT_OPERANDS, LOOKUP, "stored_weight", *ATTENTION_OPERANDS)
"""The operands for which a layer's forward is patched."""
MOST_NAMED = 3
"""Of stored weights that somebody changed: a loop without `Quantization.store` changes them all."""


@define(eq=False)
class Quantization:
    """A model under a recipe. Made by `quantize_model`; usable as a context."""

    model: nn.Module
    recipe: Recipe
    asked_compute: str = "auto"
    clock: Clock = field(factory=Clock)
    head: str | None = AUTO
    """The output head: a module's name, None, or found as `find_heads` does."""
    plan: Plan = field(init=False)
    found: dict[str, Layer] = field(init=False, factory=dict)
    """Every layer that a recipe can speak of, by name."""
    compute: str = field(init=False)
    """In which type products run: what was asked for, or what ``auto`` came to."""
    layers: dict[str, QuantizedLayer] = field(init=False, factory=dict)
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
    flops: FlopCount | None = field(init=False, default=None)
    """Counts while `count_flops` runs."""
    flop_total: int | None = field(init=False, default=None)
    flop_count: FlopCount = field(init=False, factory=FlopCount)
    """What `count_flops` found."""
    _state_casts: dict[str, tuple[ParameterSlot, Cast]] = field(init=False, factory=dict)
    _hooks: list[GradientRounding | SlowPath] = field(init=False, factory=list)
    _kept_hooks: list[RemovableHandle] = field(init=False, factory=list)
    """On the model and the optimizer, as long as the model is quantized."""
    _optimizer: torch.optim.Optimizer | None = field(init=False, default=None)
    """Whose steps are followed by `store`."""
    has_learned: bool = field(init=False, default=False)
    """Whether a backward pass came to a quantized layer."""
    _is_reach_told: bool = field(init=False, default=False)
    _changed: set[str] = field(init=False, factory=set)
    """Stored weights that something other than `store` changed."""
    _told: set[str] = field(init=False, factory=set)
    """What was warned of, once."""

    def __attrs_post_init__(self) -> None:
        check_model(self.model)
        self._take(self.recipe)
        self._kept_hooks.append(
            self.model.register_load_state_dict_post_hook(ModelHook(self._after_load))
        )

    def __repr__(self) -> str:
        formats = {c.format.name for casts in self.plan.values() for c in casts.values() if c}
        return (
            f"<Quantization of {type(self.model).__name__}: recipe {self.recipe.name} in "
            f"{', '.join(sorted(formats)) or 'no format'}; {len(self.layers)} of "
            f"{len(self.found)} layers; {self.coverage().line}>"
        )

    # Building and changing -------------------------------------------------------------------

    def _take(self, recipe: Recipe) -> None:
        found = find_layers(self.model, self.head)
        self.found = {name: layer for name, (layer, _) in found.items()}
        plan = recipe.resolve(list(self.found.values()))
        check_effect(recipe, plan)
        self._build(recipe, with_ties(recipe, self.model, plan, before={}))

    def _build(self, recipe: Recipe, plan: Plan) -> None:
        wanted = self._wanted_quantizers(recipe, plan)  # First, since it raises.
        kept = {q.name: q for q in self.quantizers}
        for hook in self._hooks:
            hook.remove()
        self.has_learned = self._is_reach_told = False
        self.recipe, self.plan, self._hooks = recipe, plan, []
        self.formats |= {c.format.name: c.format for x in plan.values() for c in x.values() if c}
        first = next(self.model.parameters(), None)
        device = torch.device("cpu") if first is None else first.device
        self.compute = choose_compute(self.asked_compute, plan, device)
        with torch.inference_mode(False):
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
        self._store_weights()
        self._patch_layers(made)
        self._hooks += slow_paths(self.model) if self.layers else []
        self.grids = weight_grids(self.model, self.stored, self.layers)
        self._state_casts = {
            full: (ParameterSlot.of(self.model, full), state)
            for name, full, _ in unique_matrices(self.model)
            if (state := plan[name]["optimizer_state"])
        }

    def _patch_layers(self, made: Mapping[str, Quantizer]) -> None:
        """Patch the forward of each layer that has a cast in it.

        A layer keeps its patch while it has a cast, so that code compiled around it stays valid.
        """
        wanted = {
            name: self.model.get_submodule(name)
            for name, casts in self.plan.items()
            if any(casts[o] is not None for o in PATCHED)
        }
        # A name may be another module's by now.
        kept = {n: x for n, x in self.layers.items() if x.module is wanted.get(n)}
        restore_forwards({n: x for n, x in self.layers.items() if n not in kept})
        stored = {id(w.slot.parameter): w for w in self.stored.values()}
        self.layers = {}
        for name, module in wanted.items():
            prefix, casts = f"{name}:", self.plan[name]
            own = {k.removeprefix(prefix): q for k, q in made.items() if k.startswith(prefix)}
            layer = kept.get(name)
            if layer is None:
                layer = QuantizedLayer(name, module, casts, own, self, module.forward)
                module.forward = PatchedForward(layer)
            layer.casts, layer.quantizers = casts, own
            layer.met, layer.calls, layer.has_learned = {}, 0, False
            parameters = matrices(module).items()
            layer.stored = {n: stored[id(p)] for n, p in parameters if id(p) in stored}
            self.layers[name] = layer
        if any(casts["weight_gradient"] for casts in self.plan.values()):
            self._hooks.append(GradientRounding(self))

    def _wanted_quantizers(self, recipe: Recipe, plan: Plan) -> dict[str, Cast]:
        wanted: dict[str, Cast] = {}
        for name, casts in plan.items():
            module = self.model.get_submodule(name)
            check_casts(recipe, name, module, casts, owner=self)
            kind = kind_of(module)
            for own in weights_of(module):
                for first, second in PAIRS.values():
                    cast, other = casts[first], casts[second]
                    wanted |= {f"{name}:{site(kind, first, own)}": cast} if cast else {}
                    if other and (other != cast or other.has_axis):
                        wanted[f"{name}:{site(kind, second, own)}"] = other
                if (cast := casts[LOOKUP]) and own in module._parameters:
                    wanted[f"{name}:{site(kind, LOOKUP, own)}"] = cast
            wanted |= {f"{name}:{o}": c for o in ATTENTION_OPERANDS if (c := casts[o])}
        for name, full, _ in unique_matrices(self.model):
            if cast := plan[name]["weight_gradient"]:
                wanted[f"{name}:weight_gradient/{full}"] = cast
        return wanted

    def _store_weights(self) -> None:
        before, self.stored = self.stored, {}
        self.stored_moves = None
        for name, full, _ in unique_matrices(self.model):
            cast = self.plan[name]["stored_weight"]
            if cast is not None:
                old, slot = before.get(full), ParameterSlot.of(self.model, full)
                self.stored[full] = (
                    old
                    if old is not None and (old.cast, old.slot.module) == (cast, slot.module)
                    else StoredWeight(full, name, slot, cast, self.clock, self._on_change)
                )

    # What others do to the model -------------------------------------------------------------

    def before_forward(self, layer: QuantizedLayer) -> None:
        """See to it that a layer's weights are what the recipe makes of them."""
        check_unflattened(layer.name, layer.module)
        parameters = layer.module._parameters
        for own, stored in layer.stored.items():
            weight = parameters.get(own)
            if weight is not stored.parameter:
                check_whole(layer.name, layer.module, own, "stored_weight")
            if weight is None or (layer.is_direct and own == "weight"):
                continue
            if stored.on_grid(weight) is not weight:
                raise BadInput(
                    f"{called(layer.name)}: {own} is stored on a grid, and a tensor was put in its "
                    "place that is on none (torch.func.functional_call?): round it, or use q.off()"
                )
        if self.has_learned and not self._is_reach_told and layer.module.training:
            for sentence in self.missed():
                self.warn(sentence)

    def awaiting_gradient(self, result: Any) -> Any:
        """Return a layer's result; note the first backward pass that comes to it.

        There may be no quantized product in it that would.
        """

        def note(_: Tensor) -> None:
            self.has_learned = True

        for t in result if isinstance(result, list | tuple) else (result,):
            if not self.has_learned and isinstance(t, Tensor) and t.grad_fn is not None:
                t.register_hook(note)
        return result

    def missed(self) -> list[str]:
        """Return what the recipe asks for and the first step did not meet, a sentence each.

        Whoever asks has to tell: there is no warning of it later.
        """
        self._is_reach_told = True
        asked = {o.partition("@")[0] for r in self.recipe.rules for o, c in r.casts.items() if c}
        planned = {o.partition("@")[0] for p in self.plan.values() for o, c in p.items() if c}
        nowhere = [
            f"the recipe's role {role} reaches no layer of the model"
            for role in ROLES
            if role in asked - planned
        ]
        return nowhere + [
            f"{called(row.layer)} ({row.module}) is not quantized as the recipe asks: "
            f"{row.why_not} (print(q.coverage()) shows all)"
            for row in self.coverage().rows
            if row.is_missed
        ]

    def tell_unseen_attention(self, layer: QuantizedLayer) -> None:
        """Warn of a module that has run, and whose attention, if it has any, was not seen."""
        if not self._is_reach_told and self.flops is None:
            self.warn(
                f"{called(layer.name)} ({type(layer.module).__name__}) computes no attention that "
                "can be seen (torch's scaled_dot_product_attention, or products around a softmax): "
                "the recipe's role attention does not reach it"
            )

    def _on_change(self, stored: StoredWeight) -> None:
        self._changed.add(stored.name)
        if len(self._changed) > MOST_NAMED:
            self.warn("more stored weights were changed in the same way, and rounded again")
            return
        self.warn(
            f"stored weight {stored.name} was changed by something other than q.store, and was "
            "rounded to its grid again before it was used. After an optimizer's step call "
            "q.store(optimizer), or give quantize_model the optimizer; after another change (an "
            "average of weights, a resize) this is all there is to do"
        )

    def _after_load(self) -> None:
        """Round the stored weights that were loaded."""
        for stored in self.stored.values():
            stored.on_grid(stored.slot.parameter, is_told=False)

    def warn(self, message: str) -> None:
        """Tell something once."""
        if message not in self._told:
            self._told.add(message)
            warnings.warn(message, RuntimeWarning, stacklevel=2)

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Let each step of the optimizer be followed by `store`; its later calls do nothing."""
        self._optimizer = optimizer
        hook = optimizer.register_step_post_hook(lambda *_: self._store(optimizer))
        self._kept_hooks.append(hook)

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
        now = find_layers(self.model, None).keys()
        if other := sorted(now ^ self.found.keys()):
            raise BadInput(
                f"the model has other layers than when it was quantized ({some(other)}): "
                "change_recipe takes it as it is now"
            )
        before = dict(self.stored)
        possible = {
            name: {o: c if self.found[name].takes(o) else None for o, c in casts.items()}
            for name, casts in plan.items()
        }
        if plan != self.plan == possible:
            raise BadInput(f"recipe {self.recipe.name}: no layer has what the change asks for")
        plan = with_ties(self.recipe, self.model, possible, before=self.plan)
        self._build(self.recipe, plan)
        return self._encoding_errors(before)

    def change_recipe(
        self, recipe: GivenRecipe, *, format: str | AnyFormat | None = None
    ) -> dict[str, float]:
        """Take another recipe, from now on: what `quantize_model` takes, and with its errors.

        The optimizer stays as it is. Returns what `change` does; nothing is changed by an error.
        """
        before = dict(self.stored)
        self._take(as_recipe(recipe, format))
        return self._encoding_errors(before)

    def _encoding_errors(self, before: Mapping[str, StoredWeight]) -> dict[str, float]:
        return {
            name: float(weight.error)
            for name, weight in self.stored.items()
            if before.get(name) is not weight
        }

    def remove(self) -> None:
        """Take everything back; stored weights keep the values that they have."""
        for hook in (*self._hooks, *self._kept_hooks):
            hook.remove()
        self._hooks, self._kept_hooks = [], []
        restore_forwards(self.layers)
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

        Also moves the random bits of stochastic rounding on by a step. Does nothing more where the
        optimizer's own steps do it (see `quantize_model`).
        """
        if optimizer is not None and not isinstance(getattr(optimizer, "state", None), Mapping):
            kind = type(optimizer).__name__
            raise BadInput(f"optimizer: what stepped is needed, with its state, not {kind}")
        followed = self._optimizer
        if followed is None or not (optimizer is None or steps_as(optimizer, followed)):
            self._store(optimizer)

    def _store(self, optimizer: torch.optim.Optimizer | None) -> None:
        if self.stored:
            for weight in self.stored.values():
                check_whole(weight.layer, weight.slot.module, weight.slot.own, "stored_weight")
            self.stored_moves = torch.stack([w.store() for w in self.stored.values()])
        if optimizer is not None and self._state_casts:
            for full, (slot, _) in self._state_casts.items():
                layer = full.rpartition(".")[0]
                check_whole(layer, slot.module, slot.own, "optimizer_state")
            casts = {n: (slot.parameter, cast) for n, (slot, cast) in self._state_casts.items()}
            left = store_optimizer_state(optimizer, casts, self.clock)
            if not optimizer.state and any(p.grad is not None for p, _ in casts.values()):
                self.warn(
                    f"optimizer_state: {type(optimizer).__name__} has no state to round, or keeps "
                    "it elsewhere (ZeroRedundancyOptimizer): nothing is rounded"
                )
            if left:
                self.warn(
                    f"optimizer_state: {type(optimizer).__name__} keeps what cannot be rounded; it "
                    f"stays as it is: {some(left)}"
                )
        self.clock.step += 1

    def measure_views(self) -> None:
        """Count the masters that moved while their quantized view did not, since the forward."""
        views = [
            (name, view)
            for name, layer in self.layers.items()
            for own, view in layer.views.items()
            # What FSDP made whole for the forward pass has no memory any more.
            if layer.module._parameters.get(own) is view.parameter
        ]
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
        return statistics.met_rates(self)

    def stall_rates(self) -> dict[str, Tensor]:
        """Return the stall rates of the last update, of stored weights and of views apart."""
        return statistics.stall_rates(self)

    def nonfinite(self) -> Tensor:
        """Return how many non-finite values quantizers met in this step, 0-dim."""
        return self.counts[:, 3].sum()

    def stats(self) -> list[dict[str, Any]]:
        """Return what each quantizer and stored weight met in the last step, as host numbers.

        ``sqnr_db`` is None where the step did not measure errors (see `begin_step`).
        """
        return statistics.rows(self)

    def coverage(self) -> Coverage:
        """Return what the recipe reaches in the model, layer by layer, and what not and why."""
        return coverage_of(self)

    def parameter_share(self) -> float:
        """Return the share of parameters whose weight is on a grid, stored or in a product.

        As planned before the first training forward; after it, what was met.
        """
        return self.coverage().parameter_share

    def count_flops(self, run: Callable[[], Any]) -> float | None:
        """Return the share of FLOPs in products with both operands on a grid; see `coverage`.

        ``run`` makes a forward and a backward pass; scales, counters and random bits are left as
        they were, and gradients are the caller's to clear. None where no product is made.
        """
        self.flops = FlopCount()
        try:
            with self.frozen():
                self.flop_total = count_flops(run) + self.flops.made
        finally:
            self.flop_count, self.flops = self.flops, None
        return self.coverage().flop_share

    def grid_of(self, parameter: Tensor, *, before_step: bool = False) -> WeightGrid | None:
        """Return the grid of a parameter, or None where it has none.

        The scale is the current one of a stored weight, with ``before_step`` that before the
        last `store`; for a view that of the last training forward.
        """
        return self.grids.find(parameter, before_step=before_step)

    # State -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return plan, scale histories and stored scales: tensors and plain data only."""
        return {
            "plan": plan_to_plain(self.plan),
            "formats": digests_of(formats_in(self.plan)),
            "step": self.clock.step,
            "histories": {
                q.name: q.history.clone() for q in self.quantizers if q.history is not None
            },
            "stored": {name: w.state_dict() for name, w in self.stored.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Restore plan, model ``weights`` and scales, in the order in which they depend."""
        check_digests(state["formats"])
        if plan_to_plain(self.plan) != state["plan"]:
            self._build(self.recipe, plan_from_plain(state["plan"]))
        for name, weight in self.stored.items():  # what is loaded is looked for on these grids
            weight.scale = state["stored"][name]["scale"].to(weight.scale.device).clone()
        self.model.load_state_dict(weights)
        self.clock.step = state["step"]
        for quantizer in self.quantizers:
            history = state["histories"].get(quantizer.name)
            quantizer.history = None if history is None else history.to(self.counts.device).clone()
        for name, weight in self.stored.items():
            weight.load_state_dict(state["stored"][name])


def quantize_model(
    model: nn.Module,
    recipe: GivenRecipe,
    *,
    format: str | AnyFormat | None = None,
    compute: str = "auto",
    seed: int = 0,
    head: str | None = AUTO,
    optimizer: torch.optim.Optimizer | None = None,
) -> Quantization:
    """Quantize ``model`` in place by a recipe; returns the handle that takes it back.

    Args:
        model: any module; its parameters, types and state dict keys stay as they are.
        recipe: a format or its name (the recipe ``master`` in it), a recipe's name, its mapping,
            or a .yaml file.
        format: what the recipe calls FORMAT.
        compute: in which type products run; see `altcore.quantization.compute.COMPUTES`.
        seed: of stochastic rounding.
        head: the output head, which named recipes leave alone: a module's name, None if the model
            has none, or ``auto`` (see `altcore.quantization.layers.find_heads`).
        optimizer: its steps are then followed by `Quantization.store`; without it, call that after
            each step of a recipe that stores anything.

    Raises:
        BadInput: for an unknown name, a pattern that matches no layer, or a layer that cannot take
            what the recipe asks.
    """
    if not isinstance(model, nn.Module):
        raise BadInput(f"model: a torch.nn.Module is needed, not {model!r:.60}")
    seed = as_python(seed)
    if not isinstance(seed, int):
        raise BadInput(f"seed: a whole number is needed, not {seed!r:.60}")
    if not isinstance(head, str | None):
        raise BadInput(f"head: the name of a module is needed, or None, not {head!r:.60}")
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module  # whose names and head a recipe means
    followed = None if optimizer is None else followable(optimizer)
    q = Quantization(model, as_recipe(recipe, format), compute, Clock(seed), head)
    if followed is not None:
        q.follow(followed)
    return q
