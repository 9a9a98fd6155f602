"""The first thing in a step that was not finite, as ``on_nan`` is told."""

from __future__ import annotations

import math

from attrs import frozen


@frozen
class NonFinite:
    """The first thing in a step that was not finite."""

    what: str
    """``weights`` (as an update left them), ``buffer`` (of the model, as a running mean), ``loss``,
    ``gradient``, ``final gradient`` (after the clippers) or ``quantizer``."""
    layer: str | None = None
    """The layer, or the parameter of a gradient or weight, or the buffer; for a loss the first
    layer whose quantizer met a value that is not finite in the forward pass, if any did. Of a
    gradient whose elements are finite and whose norm is not, the parameter with the largest one."""
    operand: str | None = None
    """The operand that a quantizer met, as ``activation@fwd``; None if none did."""
    value: float = math.nan
    """The loss, or the first such element of the gradient, weight or buffer."""
    arose: int | None = None
    """Of weights the earlier step that made them so, by its update as a rule, and likewise of a
    buffer. None of anything else, and of what this step made so before its optimizer: a buffer in
    its forward pass, a weight by an intervention."""
    loss_scale: float = 1.0
    """The factor of the step's loss before its backward pass."""
    scaled_by: str | None = None
    """The plugins that set it; None if none did."""
    rank: int | None = None
    """The first rank whose loss or quantizers met it; None if there is one process, or all have
    it, as weights, or it first arose in a gradient that no quantizer met."""

    def __str__(self) -> str:
        return self._text() + ("" if self.rank is None else f" on rank {self.rank}")

    def _text(self) -> str:
        operand = f" ({self.operand})" if self.operand else ""
        if self.what == "loss":
            first = f", first met in {self.layer}{operand}" if self.layer else ""
            return f"loss is {self.value}{first}"
        if self.what in ("weights", "buffer"):
            since = "" if self.arose is None else f" since step {self.arose}"
            return f"{self.what.removesuffix('s')} {self.layer} is {self.value}{since}"
        place = f" of {self.layer}" if self.layer else ""
        return f"{self.what}{place}{operand} is {self.value}"
