"""What a recipe asks for, held against the model that it is for: `BadInput` where it cannot be."""

from __future__ import annotations

from torch import nn

from altcore.errors import BadInput
from altcore.recipe import PRODUCT_OPERANDS, PRODUCTS, STORED, Cast, Casts, Plan, Recipe, some
from altcore.surgery.casts import StandIn
from altcore.surgery.layers import is_linear, tied_matrices


def check_effect(recipe: Recipe, plan: Plan) -> None:
    """Refuse a recipe that quantizes something, and nothing of this model."""
    asked = any(cast for rule in recipe.rules for cast in rule.casts.values())
    if asked and not any(any(casts.values()) for casts in plan.values()):
        raise BadInput(
            f"recipe {recipe.name}: the model has no layer that it quantizes "
            f"(layers: {some(list(plan))})"
        )


def with_ties(
    recipe: Recipe, model: nn.Module, plan: Plan, before: Plan
) -> dict[str, dict[str, Cast | None]]:
    """Give the layers that share a parameter one cast for what is the parameter's own.

    That is the cast which differs from ``before``; at the start that of any of the layers. Two
    that differ are refused.
    """
    made = {name: dict(casts) for name, casts in plan.items()}
    for names, full, operand in (
        (names, full, operand)
        for names, full in tied_matrices(model)
        for operand in ("weight_gradient", *STORED)
    ):
        old = {n: before[n][operand] if before else None for n in names}
        new = [made[n][operand] for n in names if made[n][operand] != old[n]]
        if any(cast != new[0] for cast in new):
            raise BadInput(
                f"recipe {recipe.name}: {' and '.join(names)} share the parameter {full}, "
                f"and have two casts for {operand}"
            )
        for n in names if new else ():
            made[n][operand] = new[0]
    return made


def check_casts(recipe: Recipe, name: str, module: nn.Module, casts: Casts, owner: object) -> None:
    """Refuse casts that the module called ``name`` cannot take.

    ``owner`` is the quantization that asks: a module that another one quantizes is refused.
    """
    where = f"recipe {recipe.name}: layer {name} is {type(module).__name__}: "
    standing = vars(module).get("forward")
    others = isinstance(standing, StandIn) and standing.layer.owner is not owner
    if others and any(casts.values()):
        raise BadInput(f"{where}it is quantized already: remove that quantization first")
    _check_stored(where, casts)
    given = {o: c for o in PRODUCT_OPERANDS if (c := casts[o])}
    if not is_linear(module) and any(c.hadamard for c in given.values()):
        raise BadInput(f"{where}a Hadamard transform needs a Linear")
    if getattr(module, "groups", 1) != 1:
        channelled = [o for o, c in given.items() if c.scaling.kind == "channel"]
        if channelled:
            raise BadInput(f"{where}{channelled[0]}: channel scaling needs groups=1")
    for a, b in PRODUCTS if is_linear(module) else ():
        first, second = casts[a], casts[b]
        lengths = (first.hadamard if first else 0, second.hadamard if second else 0)
        if lengths[0] != lengths[1]:
            raise BadInput(
                f"{where}{a} and {b} are multiplied and need the same Hadamard transform, "
                f"not {lengths[0]} and {lengths[1]}"
            )


def _check_stored(where: str, casts: Casts) -> None:
    for operand in STORED:
        if (cast := casts[operand]) and cast.blocks is not None:
            raise BadInput(
                f"{where}{operand} has one scale, and {cast.format.name} one for each block"
            )
        if cast and not cast.scaling.suits_storage:
            raise BadInput(
                f"{where}{operand} has one scale of its own, without margin or quantile: "
                f"{cast.scaling.kind} scaling cannot be had"
            )
