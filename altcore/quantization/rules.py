"""The rule by which a cast rounds."""

from __future__ import annotations

from altcore.numerics import Rule, rule_by_amax
from altcore.recipes import Cast


def rule_of(cast: Cast) -> Rule:
    """Return the rounding and overflow of a cast; what its own amax scales saturates."""
    if cast.blocks is not None:
        return Rule(cast.rounding, "saturate", cast.stochastic)
    rule = Rule(cast.rounding, cast.overflow, cast.stochastic)
    return rule_by_amax(cast.element, rule) if cast.uses_amax else rule
