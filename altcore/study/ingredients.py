"""The ingredients of a recipe, and the recipe without each: what an ablation compares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce

from attrs import evolve

from altcore.formats import BlockFormat
from altcore.recipes import Cast, Layer, Recipe, Scaling

BARE = "bare"
"""What the recipe without all of its ingredients is called."""


def _with_blocks(change: Callable[[BlockFormat], BlockFormat]) -> Callable[[Cast], Cast]:
    """Return a change of a cast's block format; one without blocks stays as it is."""

    def changed(cast: Cast) -> Cast:
        fmt = cast.format
        return evolve(cast, format=change(fmt)) if isinstance(fmt, BlockFormat) else cast

    return changed


def _along_axis(fmt: BlockFormat) -> BlockFormat:
    return evolve(fmt, name=f"{fmt.name}*along-axis", is_square=False) if fmt.is_square else fmt


def _rounded_down(fmt: BlockFormat) -> BlockFormat:
    is_other = fmt.rule in ("ceil", "rceil", "even")
    return evolve(fmt, name=f"{fmt.name}*floor", rule="floor") if is_other else fmt


def _to_nearest(cast: Cast) -> Cast:
    return evolve(cast, rounding="nearest-even") if cast.rounding == "stochastic" else cast


def _of_this_step(cast: Cast) -> Cast:
    if cast.scaling.kind != "delayed":
        return cast
    scaling = Scaling("tensor", cast.scaling.power_of_two, cast.scaling.margin)
    return evolve(cast, scaling=scaling)


WITHOUT: Mapping[str, Callable[[Cast], Cast]] = {
    "stochastic": _to_nearest,
    "hadamard": lambda cast: evolve(cast, hadamard=0),
    "square-blocks": _with_blocks(_along_axis),
    "scale-rule": _with_blocks(_rounded_down),
    "delayed-scaling": _of_this_step,
}
"""The ingredients of casts, each with what a cast is without it: nearest rounding, no Hadamard
transform, blocks along the axis of the product's sum, scales by OCP's rule, and by the step's own
amax."""


def ablations(recipe: Recipe, layers: Sequence[Layer]) -> dict[str, Recipe]:
    """Return a recipe without each of its ingredients in turn, and without all of them.

    Layers that it leaves wide are an ingredient, too: one for each pattern. What changes nothing in
    this model is none.

    Args:
        recipe: any.
        layers: of the model.

    Returns:
        By ``no-hadamard``, ``no-wide-head`` and so on, and `BARE` if there are several.
    """
    steps: dict[str, Callable[[Recipe], Recipe]] = {
        f"no-{name}": partial(_with_casts, without) for name, without in WITHOUT.items()
    }
    for rule in recipe.rules:
        if not any(rule.casts.values()):
            name = f"no-wide-{rule.pattern.strip('<>').replace(' ', '-')}"
            steps[name] = partial(_without_wide, rule.pattern)
    whole = recipe.resolve(layers)
    found = {name: step for name, step in steps.items() if step(recipe).resolve(layers) != whole}
    made = {name: step(recipe) for name, step in found.items()}
    if len(found) > 1:
        made[BARE] = reduce(lambda so_far, step: step(so_far), found.values(), recipe)
    return made


def _with_casts(change: Callable[[Cast], Cast], recipe: Recipe) -> Recipe:
    return changed(recipe, lambda _, cast: change(cast))


def _without_wide(pattern: str, recipe: Recipe) -> Recipe:
    rules = [r for r in recipe.rules if r.pattern != pattern or any(r.casts.values())]
    return evolve(recipe, rules=tuple(rules))


def changed(recipe: Recipe, change: Callable[[str, Cast], Cast]) -> Recipe:
    """Return a recipe with each of its casts changed; ``change`` takes the operand as well."""
    rules = [
        evolve(rule, casts={o: cast and change(o, cast) for o, cast in rule.casts.items()})
        for rule in recipe.rules
    ]
    return evolve(recipe, rules=tuple(rules))
