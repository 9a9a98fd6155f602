"""The names of runs, and of the folders that get them."""

from __future__ import annotations

import re
from pathlib import Path

from altcore import durable
from altcore.config import TrainConfig
from altcore.errors import BadInput
from altcore.recipes import takes_format
from altcore.yaml_files import SUFFIXES


def numbered(root: Path, base: str) -> Path:
    """Make a folder of this name, or of the name and a number."""
    for number in range(1, 100_000):
        path = root / (base if number == 1 else f"{base}-{number}")
        try:
            durable.make_folder(path)
        except FileExistsError:
            continue
        return path
    raise BadInput(f"runs_dir {root}: too many runs are called {base}: give one a --name")


def as_name(text: str) -> str:
    """Return a text as a run's name, with room for a number; empty if nothing is left.

    >>> as_name("E4M3, mine (2)")
    'E4M3-mine-2'
    """
    return re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-_")[:90]


def name_of(config: TrainConfig) -> str:
    """Return the name of a run that was given none: its label, or else its format and recipe."""
    return as_name(config.label or "") or _from_recipe(config)


def _from_recipe(config: TrainConfig) -> str:
    own = config.format is None and not takes_format(config.recipe)
    fmt = [] if own else [config.format.name if config.format else "none"]
    return "-".join(filter(None, [*map(as_name, fmt), recipe_label(config)])).lower()


def recipe_label(config: TrainConfig) -> str:
    """Return the name of a recipe in names of runs and folders."""
    name = config.recipe_name
    return as_name(name.removesuffix(next(filter(name.endswith, SUFFIXES), ""))) or "given"
