"""What was not finite first, as ``on_nan`` is told."""

from __future__ import annotations

import math

from attrs import frozen


@frozen
class NonFinite:
    """What was not finite first."""

    what: str
    """``loss``, ``gradient``, ``final gradient`` (after the clippers) or ``quantizer``."""
    layer: str | None = None
    """Layer or parameter; for a loss the first layer whose quantizer met it, if any did."""
    operand: str | None = None
    value: float = math.nan

    def __str__(self) -> str:
        operand = f" ({self.operand})" if self.operand else ""
        if self.what == "loss":
            first = f", first met in {self.layer}{operand}" if self.layer else ""
            return f"loss is {self.value}{first}"
        place = f" of {self.layer}" if self.layer else ""
        return f"{self.what}{place}{operand} is {self.value}"
