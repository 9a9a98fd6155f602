"""A recipe in any form in which a caller may give it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from altcore.errors import BadInput, nearest
from altcore.formats import AnyFormat, get_format, is_plain
from altcore.recipes.reading import NAMED, SUFFIXES, named, parse, takes_format, with_format
from altcore.recipes.recipe import Recipe
from altcore.yaml_files import read_mapping

GivenRecipe: TypeAlias = str | Path | AnyFormat | Recipe | Mapping[str, Any]


def as_recipe(recipe: GivenRecipe, format: AnyFormat | str | None = None) -> Recipe:
    """Return the recipe that a caller gave in one of its forms, with ``format`` for FORMAT.

    A format, or the name of one, is the recipe ``master`` in it. Raises `BadInput` for an unknown
    name, and where a format is missing or has no place.
    """
    fmt = None if format is None else get_format(format)
    if isinstance(recipe, Mapping) and is_plain(recipe):
        recipe = get_format(recipe)
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
        hint = nearest(recipe, NAMED)
        raise BadInput(f"format {fmt.name}: only a recipe that says FORMAT takes one{hint}")
    return recipe if isinstance(recipe, Recipe) else named("master", _format(recipe))


def _format(name: str | AnyFormat) -> AnyFormat:
    """Find the format that a caller gave for a recipe; `BadInput` if it is neither's name."""
    try:
        return get_format(name)
    except BadInput as error:
        hint = nearest(name, NAMED)
        if not hint:
            raise
        raise BadInput(
            f"unknown recipe {name!r}{hint}: one of {', '.join(NAMED)}, a file that ends in .yaml, "
            f"or a format ({error})"
        ) from error
