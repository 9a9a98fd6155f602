"""Keys: what a study calls its runs and its folder after. No key is a path."""

from __future__ import annotations

import re
from pathlib import Path

from altcore.formats import AnyFormat, digest, format_digest, saved
from altcore.recipes import self_contained
from altcore.study.identity import plain
from altcore.yaml_files import is_yaml_file

DIGITS = 8
"""Of a digest in a key."""


def run_key(text: str) -> str:
    """Return a text with only the characters that a run's name may have.

    >>> run_key("E4M3-../mine.yaml")
    'E4M3-___mine_yaml'
    """
    return re.sub(r"[^A-Za-z0-9_-]", "_", text).lstrip("_-")


def format_key(fmt: AnyFormat) -> str:
    """Return a format's name, with its digest unless an installed distribution names it."""
    is_installed = isinstance(saved(fmt), str)
    return run_key(fmt.name if is_installed else f"{fmt.name}-{format_digest(fmt)[:DIGITS]}")


def recipe_key(given: str) -> str:
    """Return a recipe's name, or that of its file with the digest of what the file says."""
    if not is_yaml_file(given):
        return run_key(given)
    return run_key(f"{Path(given).name}-{digest(plain(self_contained(given)))[:DIGITS]}")
