"""The name of a job: what tells it from the others, as far as a file's name can say it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from altcore.builtin_types import digits, to_json
from altcore.config import LONGEST_NAME
from altcore.formats import digest

DIGITS = 12
"""Of a digest at the end of a name."""


def name_of(variant: str, factors: Mapping[str, Any], taken: set[str]) -> str:
    """Return a job's name, and note it: its variant and factors, by the last part of each key.

    It ends in a digest if it would be too long, lacks a letter of a value, or is ``taken``.
    Capitals and small letters are the same to some file systems, so they are the same here.

    >>> taken = set()
    >>> name_of("base", {"learning_rate": 1e30, "resnet.width": 2}, taken)
    'base-learning_rate1e30-width2'
    >>> name_of("base", {"tag": "A"}, taken), name_of("base", {"tag": "a"}, taken)
    ('base-tagA', 'base-taga-dcf109c01399')
    """
    parts = [f"{key.rpartition('.')[2]}{_told(value)}" for key, value in factors.items()]
    whole = "-".join([variant, *parts])
    name = re.sub(r"[^A-Za-z0-9._-]+|\.(?=\.)", "-", whole)
    if name != whole or len(name) > LONGEST_NAME or name.casefold() in taken:
        end = digest([variant, to_json(factors)])[:DIGITS]
        name = f"{name[: LONGEST_NAME - DIGITS - 1]}-{end}"
    taken.add(name.casefold())
    return name


def _told(value: Any) -> str:
    if isinstance(value, Mapping | list):
        return digest(to_json(value))[:8]
    return digits(value).replace("e+", "e") if isinstance(value, float) else str(value)
