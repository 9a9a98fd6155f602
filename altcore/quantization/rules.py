"""The rule by which a cast rounds."""

from __future__ import annotations

from altcore.numerics import Rule
from altcore.recipes import Cast


def rule_of(cast: Cast) -> Rule:
    """Return the rounding and overflow of a cast; blocks saturate within themselves."""
    overflow = "saturate" if cast.blocks is not None else cast.overflow
    return Rule(cast.rounding, overflow, cast.stochastic)
