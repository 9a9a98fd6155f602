"""A whole model under a recipe.

State dict keys, parameters and types of the model stay as they are: a quantized layer's
``forward`` is patched on the instance, and `Quantization.remove` takes the patch away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from attrs import define, field
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from altcore.errors import BadInput, check_copy
from altcore.formats import AnyFormat, check_digests, digests_of
from altcore.quantization import building, coverage
from altcore.quantization.checks import check_effect, check_model, with_ties
from altcore.quantization.compute import choose_compute
from altcore.quantization.context import Clock, Context
from altcore.quantization.counters import Counters, rows
from altcore.quantization.coverage import Coverage
from altcore.quantization.discovery import AUTO, ParameterSlot, find_layers
from altcore.quantization.flops import FlopCount, count_flops
from altcore.quantization.gradient_rounding import GradientRounding, ModelHook
from altcore.quantization.layer import QuantizedLayer
from altcore.quantization.optimizer import check_steps, is_or_wraps, store_optimizer_state
from altcore.quantization.patched_forward import (
    DisabledFastPath,
    PatchedForward,
    disable_fast_paths,
    restore_forwards,
)
from altcore.quantization.quantizer import Quantizer
from altcore.quantization.recomputation import recomputation
from altcore.quantization.stored import StoredWeight, store_weights
from altcore.quantization.weight_grids import QuantizedWeights, WeightGrid, find_quantized_weights
from altcore.recipes import (
    Cast,
    Layer,
    Recipe,
    RecipeLike,
    ResolvedRecipe,
    formats_in,
    read_recipe,
    resolved_from_plain,
    resolved_to_plain,
    some,
)


@define(eq=False)
class Quantization:
    """A model under a recipe. Made by `quantize_model`; usable as a context."""

    model: nn.Module
    recipe: Recipe
    asked_compute: str = "auto"
    seed: int = 0
    """Of stochastic rounding."""
    head: str | None = AUTO
    """The output head: a module's name, None, or found as `output_head` does."""
    context: Context = field(init=False)
    plan: ResolvedRecipe = field(init=False)
    """The cast of each operand and role, by layer: ``plan[layer]["weight@fwd"]``; None for one
    that is not quantized. It changes with the recipe."""
    found: dict[str, Layer] = field(init=False, factory=dict)
    """Every layer that a recipe can speak of, by name."""
    layers: dict[str, QuantizedLayer] = field(init=False, factory=dict)
    formats: dict[str, AnyFormat] = field(init=False, factory=dict)
    """Every format there has been: from Python it may be one that no distribution names."""
    stored: dict[str, StoredWeight] = field(init=False, factory=dict)
    """The parameters that live on a grid, by full name."""
    weights: QuantizedWeights = field(init=False, factory=QuantizedWeights)
    """The weights that are on a grid, or are seen on one."""
    quantizers: list[Quantizer] = field(init=False, factory=list)
    """One for each operand that is rounded, in the order of the rows of `counters`."""
    counters: Counters = field(init=False, factory=Counters)
    """Counts of the last step and of the last update."""
    flops: FlopCount = field(init=False, factory=FlopCount)
    """Found by `count_flops`."""
    _state_casts: dict[str, tuple[ParameterSlot, Cast]] = field(init=False, factory=dict)
    moment_scales: dict[str, Tensor | float] = field(init=False, factory=dict)
    """Of the optimizer's state when it was last rounded, empty if the recipe is newer."""
    _hooks: list[GradientRounding | DisabledFastPath] = field(init=False, factory=list)
    """Of the current recipe."""
    _kept_hooks: list[RemovableHandle] = field(init=False, factory=list)
    """On the model and the optimizer, as long as the model is quantized."""
    _optimizer: torch.optim.Optimizer | None = field(init=False, default=None)
    """Whose steps are followed by `store`."""

    def __attrs_post_init__(self) -> None:
        check_model(self.model)
        tell, renew, own = self._tell_coverage, self.counters.renew, self.model.parameters
        self.context = Context(Clock(self.seed), own, tell_coverage=tell, renew_counts=renew)
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

    def _build(self, recipe: Recipe, plan: ResolvedRecipe) -> None:
        model, context = self.model, self.context
        wanted = building.casts_by_site(model, recipe, plan, context)  # First, since it raises.
        for hook in self._hooks:
            hook.remove()
        self.recipe, self.plan, self._hooks, self.moment_scales = recipe, plan, [], {}
        self.formats |= {c.format.name: c.format for x in plan.values() for c in x.values() if c}
        first = next(model.parameters(), None)
        device = torch.device("cpu") if first is None else first.device
        context.has_learned = context.is_coverage_told = False
        context.compute = choose_compute(self.asked_compute, plan, device)
        made = building.make_quantizers(wanted, self.quantizers, context)
        self.quantizers = list(made.values())
        self.counters.attach(self.quantizers, device)
        self.stored = building.make_stored_weights(model, plan, self.stored, context)
        self.layers = building.patch_layers(model, plan, made, self.stored, self.layers, context)
        if any(casts["weight_gradient"] for casts in plan.values()):
            self._hooks.append(GradientRounding(model, plan, made, context))
        self._hooks += disable_fast_paths(model) if self.layers else []
        self.weights = find_quantized_weights(model, self.stored, self.layers)
        self._state_casts = building.state_casts(model, plan)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The quantized layers, by name."""
        return {name: layer.module for name, layer in self.layers.items()}

    def change(self, plan: ResolvedRecipe) -> dict[str, float]:
        """Take another plan, from now on.

        A changed stored format re-encodes its values at a fresh scale; returns the relative
        error that this made, by parameter. Delayed scaling starts a new history if its cast
        changed; optimizer moments stay. As in a recipe, a layer without attention or
        products leaves out their operands. Raises `BadInput` if that leaves nothing, or if a
        layer cannot take its cast; nothing is changed then.
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
            raise self.recipe.refusal("no layer has what the change asks for")
        plan = with_ties(self.recipe, self.model, possible, before=self.plan)
        self._build(self.recipe, plan)
        return self._encoding_errors(before)

    def change_recipe(
        self, recipe: RecipeLike, *, format: str | AnyFormat | None = None
    ) -> dict[str, float]:
        """Take another recipe, from now on: any that `quantize_model` takes, with the same errors.

        The optimizer stays as it is. Returns the same as `change`; an error changes nothing.
        """
        before = dict(self.stored)
        self._take(read_recipe(recipe, format))
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
        self.layers, self.stored, self.weights = {}, {}, QuantizedWeights()
        self._state_casts = {}

    @property
    def is_removed(self) -> bool:
        """Whether `remove` took everything back."""
        return not self._kept_hooks

    def __enter__(self) -> Quantization:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Call `store` after each step of the optimizer; explicit calls then do nothing."""
        check_steps(optimizer, self.model, self.context)
        self._optimizer = optimizer
        hook = optimizer.register_step_post_hook(lambda *_: self._store(optimizer))
        self._kept_hooks.append(hook)

    def _after_load(self) -> None:
        """Round the stored weights that were loaded."""
        for stored in self.stored.values():
            stored.on_grid(stored.slot.parameter, is_told=False)

    # The step --------------------------------------------------------------------------------

    def begin_step(self, step: int, *, tracking: bool = False, errors: bool = False) -> None:
        """Start a step: counters at zero, random bits of stochastic rounding those of ``step``.

        With ``tracking`` the views of master weights are kept for `measure_views`; with
        ``errors`` the quantizers sum the squares of their errors.
        """
        self.context.clock.step = step
        self.context.tracks_views, self.context.measures_errors = tracking, errors
        self.counters.reset()

    def store(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Put stored weights and optimizer state back on their grids, after the optimizer.

        Also moves the random bits of stochastic rounding on by a step. Does nothing if the
        optimizer's own steps call it (see `quantize_model`).
        """
        if optimizer is not None and not isinstance(getattr(optimizer, "state", None), Mapping):
            kind = type(optimizer).__name__
            raise BadInput(f"what stepped is needed, with its state, not {kind}", key="optimizer")
        own = self._optimizer
        if own is None or not (optimizer is None or is_or_wraps(optimizer, own)):
            self._store(optimizer)

    def _store(self, optimizer: torch.optim.Optimizer | None) -> None:
        if self.stored:
            self.counters.stored_moves = store_weights(self.stored.values())
        if self._state_casts:
            scales = store_optimizer_state(optimizer, self._state_casts, self.context)
            self.moment_scales = scales
        self.context.clock.step += 1
        self.counters.is_over = True

    def measure_views(self) -> None:
        """Count the masters that moved while their quantized view did not, since the forward."""
        self.counters.add_views(self.layers)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Run the model's own forward on the same weights, unquantized."""
        before, self.context.is_off = self.context.is_off, True
        try:
            yield
        finally:
            self.context.is_off = before

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let no scale, counter or call number move: for evaluation and probes."""
        before, self.context.is_frozen = self.context.is_frozen, True
        try:
            yield
        finally:
            self.context.is_frozen = before

    def recomputation(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Return the contexts that make activation checkpointing exact.

        It is the ``context_fn`` of `torch.utils.checkpoint.checkpoint`: the part that is computed
        again has the random bits and the scales of its forward pass, and counts nothing twice.
        """
        return recomputation(self.quantizers, self.context)

    # What was met ----------------------------------------------------------------------------

    @property
    def compute(self) -> str:
        """The type in which products run; never ``auto``."""
        return self.context.compute

    def stats(self) -> list[dict[str, Any]]:
        """Return the last step's counts on the host; ``sqnr_db`` is None if nothing measured it."""
        return rows(self.counters, self.stored.values())

    def coverage(self) -> Coverage:
        """Return the parts of the model that the recipe reaches, and why it misses the others."""
        return coverage.coverage_of(
            self.model,
            self.recipe,
            self.plan,
            head=self.head,
            found=self.found,
            layers=self.layers,
            flops=self.flops,
        )

    def missed(self) -> list[str]:
        """Return a sentence for each wish of the recipe that the first step did not meet.

        The caller has to tell the user: no warning follows.
        """
        self.context.is_coverage_told = True
        return coverage.missed(self.recipe, self.plan, self.coverage())

    def _tell_coverage(self) -> None:
        for sentence in self.missed():
            self.context.warn(sentence)
        if self._state_casts and self._optimizer is None and self.context.clock.step == 0:
            store_optimizer_state(None, self._state_casts, self.context)

    def count_flops(self, run: Callable[[], Any]) -> float | None:
        """Return the share of FLOPs in products with both operands on a grid; see `coverage`.

        ``run`` makes a forward and a backward pass; scales, counters and random bits are left as
        they were, and gradients are the caller's to clear. None if no product is made.
        """
        self.flops = self.context.flops = FlopCount()
        try:
            with self.frozen():
                self.flops.total = count_flops(run) + self.flops.made
        finally:
            self.context.flops = None
        return self.coverage().flop_share

    def grid_of(self, parameter: Tensor, *, before_step: bool = False) -> WeightGrid | None:
        """Return the grid of a parameter, or None if it has none.

        The scale is the current one of a stored weight, with ``before_step`` that before the
        last `store`; for a view that of the last training forward.
        """
        return self.weights.grid_of(parameter, before_step=before_step)

    # State -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return plan, scale histories, stored scales and messages: tensors and plain data only."""
        histories = {str(q.site): q.history for q in self.quantizers if q.history is not None}
        return {
            "plan": resolved_to_plain(self.plan),
            "formats": digests_of(formats_in(self.plan)),
            "step": self.context.clock.step,
            "histories": {site: history.clone() for site, history in histories.items()},
            "stored": {name: w.state_dict() for name, w in self.stored.items()},
            "moments": dict(self.moment_scales),
            "told": sorted(self.context.told),
            "calls": self._calls_of_step(),
        }

    def _calls_of_step(self) -> dict[str, int]:
        """Return the calls that drew random bits since the last step, in the middle of one."""
        step = self.context.clock.step
        called = (q for q in self.quantizers if q.last_step == step and q.calls)
        return {str(q.site): q.calls for q in called}

    def load_state_dict(self, state: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Restore plan, model ``weights`` and scales, in the order in which they depend."""
        check_digests(state["formats"])
        if resolved_to_plain(self.plan) != state["plan"]:
            self._build(self.recipe, resolved_from_plain(state["plan"]))
        for name, weight in self.stored.items():  # loaded weights are looked for on these grids
            weight.scale = state["stored"][name]["scale"].to(weight.scale.device).clone()
        self.model.load_state_dict(weights)
        self.context.clock.step, self.moment_scales = state["step"], dict(state["moments"])
        self.context.told.update(state["told"])
        device = self.counters.counts.device
        for quantizer in self.quantizers:
            history = state["histories"].get(str(quantizer.site))
            quantizer.history = None if history is None else history.to(device).clone()
            quantizer.last_step = state["step"]
            quantizer.calls = state["calls"].get(str(quantizer.site), 0)
        for name, weight in self.stored.items():
            weight.load_state_dict(state["stored"][name])


def is_quantized(model: nn.Module) -> bool:
    """Whether a model, or a part of it, is under a recipe; a copy of such a model is not.

    Raises `BadInput` if another copy of altcore put it there.
    """
    held = [vars(module).get("forward") for module in model.modules()]
    held += [x for module in model.modules() for x in module._load_state_dict_post_hooks.values()]
    for x in held:
        check_copy(x, "the quantization of the model", PatchedForward)
    return any(isinstance(x, PatchedForward) or (isinstance(x, ModelHook) and x.call) for x in held)
