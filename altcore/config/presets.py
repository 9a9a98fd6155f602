"""Presets: plugins and settings under one name, which are data, in presets.yaml."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from altcore.config.assignments import Assignment
from altcore.errors import BadInput, nearest, shown


@cache
def presets() -> dict[str, dict[str, Any]]:
    """Return the keys of each preset, by its name."""
    return dict(yaml.safe_load((files("altcore.config") / "presets.yaml").read_text()))


def find_preset(given: Assignment) -> dict[str, Any]:
    """Return the keys of the preset that is named; `BadInput` for an unknown one."""
    if not isinstance(given.value, str) or given.value not in presets():
        raise BadInput(
            f"{shown(given.value)} is none of {', '.join(presets())}",
            key="preset",
            meant=nearest(given.value, presets()),
            source=given.source,
        )
    return presets()[given.value]
