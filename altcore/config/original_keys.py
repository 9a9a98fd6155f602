"""The flat keys of the original experiments; their meaning is data, in original-keys.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from altcore.config.assignments import Assignment
from altcore.errors import BadInput, shown

WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


@cache
def _data() -> dict[str, Any]:
    return dict(yaml.safe_load((files("altcore.config") / "original-keys.yaml").read_text()))


def renamed_keys() -> dict[str, str]:
    """Return the original keys that have another name today, and that name."""
    return dict(_data()["renamed"])


def shared_keys(plugin: str) -> dict[str, str]:
    """Return the settings of a plugin that are keys of the run as well, and these keys."""
    return dict(_data()["shared"].get(plugin, {}))


def compound_keys() -> dict[str, dict[Any, Any]]:
    """Return the original keys that stand for several keys of today, and which."""
    return dict(_data()["compound"])


def notices(original: Mapping[str, Any]) -> list[str]:
    """Return the lines that a run says of the original keys it was given."""
    said = {key: meaning.get("says") for key, meaning in compound_keys().items()}
    return [f"{key} {said[key]}" for key in original if said.get(key)]


def checked_value(given: Assignment) -> Any:
    """Return a compound key's value; `BadInput` if it has not the type of the key's default."""
    if given.key not in compound_keys():
        return given.value
    kind = type(compound_keys()[given.key]["default"])
    if kind is float and type(given.value) is int:
        return float(given.value)
    if type(given.value) is not kind:
        problem = f"{shown(given.value)} is not {WORDS[kind]}"
        raise BadInput(problem, key=given.key, source=given.source)
    return given.value
