"""What a quantized model met in a step: rates on the device, rows as host numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor

from altcore.numerics import COUNTS
from altcore.quantization.stored import STALL

if TYPE_CHECKING:
    from altcore.quantization.quantization import Quantization


def met_rates(q: Quantization) -> dict[str, Tensor | None]:
    """See `Quantization.met_rates`."""
    can = [i for i, quantizer in enumerate(q.quantizers) if not quantizer.cast.uses_amax]
    total, over = q.counts.sum(0), q.counts[can].sum(0)
    return {
        "overflow_rate": _share(over[1], over[0]) if can else None,
        "flushed_rate": _share(total[2], total[0]) if q.quantizers else None,
    }


def stall_rates(q: Quantization) -> dict[str, Tensor]:
    """See `Quantization.stall_rates`."""
    rates = {}
    if q.stored_moves is not None:
        updates, stalled = q.stored_moves.sum(0)[:2]
        rates["stored_stall_rate"] = _share(stalled, updates)
    if q.view_moves is not None:
        moved, stalled = q.view_moves.sum(0)
        rates["view_stall_rate"] = _share(stalled, moved)
    return rates


def rows(q: Quantization) -> list[dict[str, Any]]:
    """See `Quantization.stats`."""
    found: list[dict[str, Any]] = []
    met = zip(q.quantizers, q.counts.tolist(), q.errors.tolist(), strict=True)
    for quantizer, counts, errors in met:
        cast = quantizer.cast
        seen = dict(zip(COUNTS, counts, strict=True))
        found.append(
            {
                "layer": quantizer.layer,
                "operand": quantizer.operand,
                "parameter": quantizer.parameter,
                "format": cast.format.name,
                **seen,
                "overflow": None if cast.uses_amax else seen["overflow"],
                "sqnr_db": _decibels(*errors),
            }
        )
    moves = [] if q.stored_moves is None else q.stored_moves.tolist()
    # Before the first update there are stored weights and no moves.
    for weight, counts in zip(q.stored.values(), moves, strict=False):
        found.append(
            {
                "layer": weight.layer,
                "operand": "stored_weight",
                "format": weight.cast.format.name,
                "scale": float(weight.scale),
                **dict(zip(STALL, counts, strict=True)),
            }
        )
    views = [] if q.view_moves is None else q.view_moves.tolist()
    for name, (moved, stalled) in zip(q.view_layers, views, strict=True):
        view = {"moved": moved, "stalled": stalled}
        found.append({"layer": name, "operand": "weight view", **view})
    return found


def _decibels(error: float, signal: float) -> float | None:
    """Signal to quantization noise; None where nothing was measured or nothing was lost."""
    return 10 * math.log10(signal / error) if error > 0 and signal > 0 else None


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return part.double() / whole.clamp(min=1)
