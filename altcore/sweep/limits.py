"""The limits that a sweep file sets to what its runs hold, and to how its jobs go."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from attrs import frozen
from attrs.validators import and_, ge, gt, le, optional

from altcore.builtin_types import digits
from altcore.errors import BadInput, shown
from altcore.hooks import setting

_SHARE = and_(ge(0), le(1))
Range = tuple[float | None, float | None]
"""The lowest and the highest value; None for no limit."""


@frozen(kw_only=True)
class Alerts:
    """Limits whose transgression ``status`` tells."""

    failed: float | None = setting(
        0.1, help="share of the ended jobs that failed", validator=optional(_SHARE)
    )
    collapsed: float | None = setting(
        None, help="share of the completed runs that collapsed", validator=optional(_SHARE)
    )
    minutes: float | None = setting(60.0, help="of one job's attempts", validator=optional(gt(0)))
    epochs: float | None = setting(
        None, help="epochs of a run whose job may take longer than that", validator=optional(gt(0))
    )


def check_finite(held: Any, key: str) -> None:
    """Raise `BadInput`, with the key, for a number that is not finite, at any depth."""
    if isinstance(held, float) and not math.isfinite(held):
        problem = f"a finite number is needed, not {shown(held)}"
        raise BadInput(problem, key=key, hint="null, or no such key, is no limit")
    for name, part in held.items() if isinstance(held, Mapping) else ():
        check_finite(part, f"{key}.{name}")
    for part in held if isinstance(held, list) else ():
        check_finite(part, key)


def range_of(name: str, given: Any) -> Range:
    """Return the range of a check. Raises `BadInput` unless it is a list of two limits."""
    key = f"checks.{name}"
    if not isinstance(given, list) or len(given) != 2:
        raise BadInput(f"[LOWEST, HIGHEST] is needed, not {shown(given)}", key=key)
    for limit in given:
        if isinstance(limit, bool) or not isinstance(limit, int | float | None):
            raise BadInput(f"a limit is a number or null, not {shown(limit)}", key=key)
    low, high = given
    if low is not None and high is not None and low > high:
        raise BadInput(f"{digits(low)} is above {digits(high)}", key=key)
    return low, high
