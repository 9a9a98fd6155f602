"""The diagnostic ``overflow``: what rounding loses at both ends of a format's range."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
import torch
from attrs.validators import ge
from torch import Tensor

from altcore.plugin import (
    COUNTS,
    MeasureTable,
    active_quantizers,
    compute_dtype,
    count_small,
    early_and_late,
    hookimpl,
    inverse_scale,
    last_input,
    round_scalar,
    setting,
)

if TYPE_CHECKING:
    from altcore.plugin import Format, Run, Step


@attrs.define(eq=False)
class Overflow:
    """Overflow, clipping, underflow, flushing to zero and SQNR of every quantized operand.

    Measures of a step, all its micro-batches together; shares are in 0..1, among all elements:

    - ``overflow_share``: finite elements whose rounding passed the largest value. n/a, and so left
      out, where every scale is the exact amax of what it scales: overflow is then impossible;
    - ``clip_share``: those of them that became the largest value, since the overflow rule of their
      cast is ``saturate``; left out if nothing can be clipped. A block format's scale may clip
      (MX under the rule floor does);
    - ``flush_share``: elements other than 0 that became 0;
    - ``underflow_share``: elements other than 0 that round, to nearest even, to a magnitude below
      the format's smallest normal value: subnormals, which have lost significant bits, and what is
      flushed. Of the last micro-batch, and measured only for floating-point formats with an
      exponent, for weights, activations and gradients whose scale is one number. What becomes of
      block formats, channel scales and Hadamard transforms is not at hand, and left out;
    - ``sqnr_db``: the signal-to-quantization-noise ratio, 10 · log10 of the sum of squares over
      the sum of squared errors, over finite elements, in dB; infinite if rounding changed
      nothing. Of several tensors: of the mean of their noise-to-signal ratios, so that neither
      size nor scale of a tensor counts; tensors of zeros are left out, and of nothing else it is
      NaN.

    Each as a whole, for one layer (``flush_share/layer.name``), for an operand
    (``activation@fwd_flush_share``), and for an operand of one layer
    (``activation@fwd_flush_share/layer.name``). If one rounding serves two operands it is the
    first's. Weights that are stored on the grid already are not quantized again, and have none.
    """

    needs: ClassVar[tuple[str, ...]] = ("errors", "activations", "output_gradients")
    interval: int = setting(50, help="steps between measurements", validator=ge(1))

    @hookimpl
    @torch.no_grad()
    def post_backward(self, run: Run, step: Step) -> dict[str, Tensor]:
        """Put the counters of the step together, on the device."""
        found = Tables()
        for i, quantizer in active_quantizers(run):
            counts = run.quantization.counters.counts[i]
            met = dict(zip(COUNTS, counts.unbind(), strict=True))
            elements, overflow = met["elements"], met["overflow"]
            cast = quantizer.cast
            found.add("flush_share", quantizer, met["flushed"], elements)
            if not cast.uses_amax:
                found.add("overflow_share", quantizer, overflow, elements)
                if cast.overflow == "saturate":
                    found.add("clip_share", quantizer, overflow, elements)
            low = below_normal(last_input(run, step, quantizer), quantizer)
            if low is not None:
                found.add("underflow_share", quantizer, *low)
            noise, signal = run.quantization.counters.errors[i].unbind()
            is_known = signal > 0
            found.add("sqnr_db", quantizer, torch.where(is_known, noise / signal, 0.0), is_known)
        return found.measures()

    @hookimpl
    def findings(self, history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Say what rounding loses at both ends of the range, early and late."""
        ends = ("overflow", "clip", "underflow", "flush")
        return early_and_late(history, "lost values", {end: f"{end}_share" for end in ends})


@attrs.define(eq=False)
class Tables:
    """A table for each measure, of parts and wholes: of everything, and by operand."""

    tables: dict[str, MeasureTable] = attrs.field(factory=dict)

    def add(self, measure: str, quantizer: Any, part: Tensor, whole: Tensor) -> None:
        """Add what one quantizer met."""
        layer, operand = quantizer.site.layer, quantizer.site.operand
        table = self.tables.setdefault(measure, MeasureTable(_finish(measure)))
        for kind in ("", operand):
            table.add(kind, layer, part, whole)

    def measures(self) -> dict[str, Tensor]:
        """Return the measures of all tables."""
        return {k: v for table in self.tables.values() for k, v in table.measures().items()}


def below_normal(x: Tensor | None, quantizer: Any) -> tuple[Tensor, Tensor] | None:
    """Return how many elements of what was quantized underflow, and of how many; see `Overflow`."""
    fmt, scale = quantizer.cast.element, quantizer.last_scale
    normal = smallest_normal(fmt)
    has_scale = quantizer.cast.scaling.kind != "none"
    if x is None or normal is None or quantizer.cast.blocks is not None:
        return None
    if has_scale and (scale is None or scale.ndim > 0):
        return None
    dtype = compute_dtype(x.dtype, fmt)
    r, least = inverse_scale(scale if has_scale else None), first_normal(fmt, normal, dtype)
    number = count_small(x.to(dtype) if dtype == torch.float64 else x, least, r)
    return number, torch.full_like(number, x.numel())


@cache
def first_normal(fmt: Format, normal: float, dtype: torch.dtype) -> float:
    """Return the smallest number that rounds, to nearest even, to the smallest normal value."""
    middle = (fmt.values[fmt.values.index(normal) - 1] + normal) / 2
    if round_scalar(middle, fmt) >= normal:
        return middle
    # A number between the two has more bits than any value of a format.
    return middle * (1 + torch.finfo(dtype).eps)


def smallest_normal(fmt: Format) -> float | None:
    """Return a floating-point format's smallest normal value; None for any other format."""
    exponent = getattr(fmt, "min_exponent", None)
    if exponent is None or not getattr(fmt, "exponent_bits", 0):
        return None
    return float(2.0**exponent)


def _finish(measure: str) -> Any:
    def finish(columns: Tensor) -> dict[str, Tensor]:
        share = columns[0] / columns[1]
        return {measure: -10 * share.log10() if measure == "sqnr_db" else share}

    return finish
