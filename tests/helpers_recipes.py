"""A small model's layers, and what a recipe quantizes of them."""

from altcore.recipes import Layer
from altcore.recipes.reading import parse

LAYERS = [
    Layer("emb", "embedding"),
    Layer("a.q", "linear"),
    Layer("a.k", "linear"),
    Layer("conv", "other"),
    Layer("head", "linear", is_head=True),
]


def covered(recipe, layers=LAYERS):
    """{layer: {operand: format name}} of what is quantized."""
    plan = recipe.resolve(layers)
    return {
        layer: {o: c.format.name for o, c in casts.items() if c}
        for layer, casts in plan.items()
        if any(casts.values())
    }


def plan_of(data):
    """A plan for LAYERS."""
    return parse(data, "r").resolve(LAYERS)
