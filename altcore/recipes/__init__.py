"""Which cast each operand of a model's layers has: the model of a recipe, and reading one.

Uses formats; needs no torch.
"""

from altcore.recipes.cast import Cast, Scaling, has_overflow
from altcore.recipes.cast_reading import Place, read_rounding, read_scaling
from altcore.recipes.changes import change
from altcore.recipes.layers import Layer, is_meant, matching, some, takes_hadamard
from altcore.recipes.named import NAMED, name_of, takes_format
from altcore.recipes.operands import (
    ATTENTION_OPERANDS,
    LOOKUP,
    OF_PARAMETERS,
    OPERANDS,
    PRODUCT_OPERANDS,
    PRODUCTS,
    ROLES,
    STORED,
    operands_of,
)
from altcore.recipes.reading import (
    RecipeLike,
    format_of_run,
    read_recipe,
    resolved_from_plain,
    self_contained,
)
from altcore.recipes.recipe import (
    Casts,
    Recipe,
    ResolvedRecipe,
    formats_in,
    resolved_to_plain,
)

__all__ = [
    "ATTENTION_OPERANDS",
    "LOOKUP",
    "NAMED",
    "OF_PARAMETERS",
    "OPERANDS",
    "PRODUCTS",
    "PRODUCT_OPERANDS",
    "ROLES",
    "STORED",
    "Cast",
    "Casts",
    "Layer",
    "Place",
    "Recipe",
    "RecipeLike",
    "ResolvedRecipe",
    "Scaling",
    "change",
    "format_of_run",
    "formats_in",
    "has_overflow",
    "is_meant",
    "matching",
    "name_of",
    "operands_of",
    "read_recipe",
    "read_rounding",
    "read_scaling",
    "resolved_from_plain",
    "resolved_to_plain",
    "self_contained",
    "some",
    "takes_format",
    "takes_hadamard",
]
