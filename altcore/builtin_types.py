"""Values of numpy's types, and paths, as Python's built-in types. Imports no numpy."""

from __future__ import annotations

import os
import sys
from typing import Any


def as_builtin(value: Any) -> Any:
    """Return numpy's numbers as Python's, and paths as text; everything else as it is.

    Lists, tuples and dictionaries are converted at every depth.
    """
    numpy = sys.modules.get("numpy")  # if its numbers exist, somebody imported it
    if numpy is not None and isinstance(value, numpy.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if type(value) in (list, tuple):
        return type(value)(as_builtin(v) for v in value)
    if type(value) is dict:
        return {as_builtin(k): as_builtin(v) for k, v in value.items()}
    return value
