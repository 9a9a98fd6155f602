"""What callers give as numpy's numbers or as paths, as Python has it. Imports no numpy."""

from __future__ import annotations

import os
import sys
from typing import Any


def as_python(value: Any) -> Any:
    """Return numpy's numbers as Python's, and paths as text.

    Within lists, tuples and dictionaries, too; anything else as it is.
    """
    numpy = sys.modules.get("numpy")  # imported by whoever has its numbers
    if numpy is not None and isinstance(value, numpy.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if type(value) in (list, tuple):
        return type(value)(as_python(v) for v in value)
    if type(value) is dict:
        return {as_python(k): as_python(v) for k, v in value.items()}
    return value
