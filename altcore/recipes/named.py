"""The named recipes, which lie here as .yaml."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

PLACEHOLDER = "FORMAT"
"""Stands for the run's format (``--format``) in the text of a recipe."""
NAMED = tuple(
    sorted(
        p.name.removesuffix(".yaml")
        for p in files("altcore.recipes").iterdir()
        if p.name.endswith(".yaml")
    )
)


@cache
def text_of(name: str) -> Mapping[str, Any]:
    """Return a named recipe in its plain form."""
    data: Mapping[str, Any] = yaml.safe_load(
        (files("altcore.recipes") / f"{name}.yaml").read_text()
    )
    return data


def takes_format(recipe: Any) -> bool:
    """Whether a recipe, by its name or in plain form, says FORMAT for the run's format."""
    return _says_format(text_of(recipe) if recipe in NAMED else recipe)


def _says_format(data: Any) -> bool:
    if isinstance(data, Mapping):
        return any(_says_format(v) for k, v in data.items() if not _is_name(k, v))
    return isinstance(data, str) and data == PLACEHOLDER


def _is_name(key: Any, value: Any) -> bool:
    """Whether this is the name that a recipe gives itself; a layer may have the name ``name``."""
    return bool(key == "name") and not isinstance(value, Mapping)


def name_of(recipe: str | Mapping[str, Any]) -> str:
    """Return a recipe's name; one in plain form that has none is called ``given``."""
    return recipe if isinstance(recipe, str) else str(recipe.get("name", "given"))
