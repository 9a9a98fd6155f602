"""A curve as a word of blocks, for a terminal."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from itertools import pairwise
from statistics import median_low

BLOCKS, ASCII = "▁▂▃▄▅▆▇█", "_.-:=+*#"
"""From the lowest to the highest, and for a terminal that has no blocks."""
NOT_FINITE = "x"


def sparkline(values: Sequence[float], width: int) -> str:
    """Return the curve of some numbers, at most ``width`` characters wide.

    A character is the median of its numbers, or `NOT_FINITE` if none of them is finite.

    >>> sparkline([4.0, 3.0, 1.5, 1.0, math.nan], 5)
    '█▆▂▁x'
    """
    count = min(width, len(values))
    bounds = [len(values) * i // count for i in range(count + 1)] if count else [0]
    parts = [values[a:b] for a, b in pairwise(bounds)]
    cells = [median_low(kept) if (kept := [*filter(math.isfinite, p)]) else None for p in parts]
    known = [cell for cell in cells if cell is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    levels = BLOCKS if _has_blocks() else ASCII
    top = len(levels) - 1
    step = high / top - low / top or 1.0
    return "".join(NOT_FINITE if c is None else levels[round(c / step - low / step)] for c in cells)


def _has_blocks() -> bool:
    """Whether standard output can take the blocks."""
    try:
        BLOCKS.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
