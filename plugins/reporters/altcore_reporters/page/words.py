"""Numbers in words, as short as they can be read."""

from __future__ import annotations

import math
from typing import Any

NONE = "–"
"""What stands where nothing was measured."""


def number(value: Any, digits: int = 4) -> str:
    """Return a number with some significant digits.

    >>> number(0.00012346), number(12345678.0), number(4.0), number(None), number(3.14159)
    ('0.0001235', '1.235e+07', '4', '–', '3.142')
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        return NONE if value is None else str(value)
    if not math.isfinite(value):
        return str(value)
    if isinstance(value, int):
        return str(value)
    if value == 0:
        return "0"
    if 1e-4 <= abs(value) < 1e6:
        places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
        text = f"{value:.{places}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{value:.{digits}g}"


def loss(value: Any) -> str:
    """Return a loss; all have as many digits, so that they can be compared.

    >>> loss(2.6999999), loss(11.0), loss(None)
    ('2.700', '11.00', '–')
    """
    if not isinstance(value, int | float) or not 1e-3 <= abs(value) < 1e4:
        return number(value)
    return f"{value:.{max(0, 3 - math.floor(math.log10(abs(value))))}f}"


def share(value: Any) -> str:
    r"""Return a share as a percentage; only 0 and 1 themselves look like them.

    >>> share(0.5), share(0.99999), share(1e-7), share(0), share(None)
    ('50\xa0%', 'over 99.99\xa0%', 'under 0.01\xa0%', '0\xa0%', '–')
    """
    if not isinstance(value, int | float):
        return NONE
    if 0 < value < 5e-5:
        return "under 0.01\u00a0%"
    if 0.99995 <= value < 1:
        return "over 99.99\u00a0%"
    return f"{number(100 * value, 3 if value < 0.995 else 4)}\u00a0%"


def plural(count: int, word: str) -> str:
    """Return a count with its noun.

    >>> plural(1, "run"), plural(3, "run")
    ('1 run', '3 runs')
    """
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def duration(seconds: Any) -> str:
    """Return a time span in its two largest units.

    >>> duration(42.3), duration(125), duration(7300), duration(200000), duration(None)
    ('42 s', '2 min 5 s', '2 h 1 min', '2 d 7 h', '–')
    """
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return NONE
    if seconds < 60:
        return f"{number(float(seconds), 2)} s"
    left = round(seconds)
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    parts = []
    for name, size in units:
        count, left = divmod(left, size)
        if count or parts:
            parts.append((count, name))
    return " ".join(f"{count} {name}" for count, name in parts[:2] if count)
