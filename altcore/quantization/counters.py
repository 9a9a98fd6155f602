"""Count what happens to the tensors of a quantized model in a step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from attrs import define, field
from torch import Tensor

from altcore.numerics import COUNTS
from altcore.quantization.layer import QuantizedLayer
from altcore.quantization.quantizer import Quantizer
from altcore.quantization.stored import MOVES, StoredWeight


@define(eq=False)
class Counters:
    """Counts of the last step, on the device."""

    quantizers: list[Quantizer] = field(init=False, factory=list)
    counts: Tensor = field(init=False)
    """int64 (quantizers, 4): what each quantizer met. The columns, by `altcore.plugin.COUNTS`:
    ``elements``; ``overflow``, finite elements whose rounding passed the largest value;
    ``flushed``, elements other than 0 that became 0; ``nonfinite``."""
    errors: Tensor = field(init=False)
    """float64 (quantizers, 2): sums of squared errors and of squares; need `errors`."""
    of_weights: Tensor = field(init=False)
    """bool (quantizers,): which of them round a weight, and no samples or gradients."""
    stored_moves: Tensor | None = field(init=False, default=None)
    """int64 (stored weights, 4): elements in the last update. The columns, by
    `altcore.plugin.MOVES`: ``updates``, whose proposed update was not zero; ``stalled``, those of
    them whose code stayed; ``flips``, whose code changed at the scale before; ``rescaled``, whose
    code a new scale moved."""
    view_moves: Tensor | None = field(init=False, default=None)
    """int64 (views, 2): masters that moved, and those of them whose view did not."""
    view_layers: list[str] = field(init=False, factory=list)
    """The layers of the rows of `view_moves`."""
    is_over: bool = field(init=False, default=False)
    """Whether the step that was counted is over, so that the next forward pass starts another."""

    def attach(self, quantizers: list[Quantizer], device: torch.device) -> None:
        """Give each quantizer its rows, at zero."""
        n = len(quantizers)
        with torch.inference_mode(False):
            self.counts = torch.zeros(n, len(COUNTS), dtype=torch.int64, device=device)
            self.errors = torch.zeros(n, 2, dtype=torch.float64, device=device)
            of_weights = [q.site.operand.startswith("weight@") for q in quantizers]
            self.of_weights = torch.tensor(of_weights, dtype=torch.bool, device=device)
        for i, quantizer in enumerate(quantizers):
            quantizer.counts, quantizer.errors = self.counts[i], self.errors[i]
        self.quantizers, self.stored_moves = quantizers, None

    def reset(self) -> None:
        """Start a step at zero."""
        self.is_over = False
        if self.quantizers:  # nothing to count is no launch on a GPU
            self.counts.zero_()
            self.errors.zero_()

    def renew(self) -> None:
        """Start a step at zero if the last one is over."""
        if self.is_over:
            self.reset()

    def add_views(self, layers: Mapping[str, QuantizedLayer]) -> None:
        """Count the masters that moved while their quantized view did not, since the forward."""
        views = [
            (name, view)
            for name, layer in layers.items()
            for own, view in layer.views.items()
            # FSDP frees the memory of a parameter that it made whole for the forward pass.
            if layer.module._parameters.get(own) is view.parameter
        ]
        self.view_layers = [name for name, _ in views]
        self.view_moves = torch.stack([v.movement() for _, v in views]) if views else None
        for layer in layers.values():
            layer.views.clear()

    def nonfinite(self) -> Tensor:
        """Return how many non-finite values quantizers met, 0-dim."""
        return self.counts[:, 3].sum()

    def met_rates(self) -> dict[str, Tensor | None]:
        """Return the rates of overflow and of flushing to zero, 0-dim; None if impossible.

        ``overflow_rate`` is None if every scale comes from the tensor's own amax: overflow is
        then impossible by construction.
        """
        if not self.quantizers:
            return {"overflow_rate": None, "flushed_rate": None}
        can = [i for i, quantizer in enumerate(self.quantizers) if not quantizer.cast.uses_amax]
        total, over = self.counts.sum(0), self.counts[can].sum(0)
        return {
            "overflow_rate": _share(over[1], over[0]) if can else None,
            "flushed_rate": _share(total[2], total[0]),
        }

    def stall_rates(self) -> dict[str, Tensor]:
        """Return the stall rates of the last update, of stored weights and of views apart."""
        rates = {}
        if self.stored_moves is not None:
            updates, stalled = self.stored_moves.sum(0)[:2]
            rates["stored_stall_rate"] = _share(stalled, updates)
        if self.view_moves is not None:
            moved, stalled = self.view_moves.sum(0)
            rates["view_stall_rate"] = _share(stalled, moved)
        return rates


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return part.double() / whole.clamp(min=1)


# ------------------------------------------------------------- rows of `Quantization.stats`


def rows(counters: Counters, stored: Iterable[StoredWeight]) -> list[dict[str, Any]]:
    """Return the counts of each quantizer, stored weight and view as host numbers."""
    return [
        *_quantizer_rows(counters.quantizers, counters.counts, counters.errors),
        *_stored_rows(stored, counters.stored_moves),
        *_view_rows(counters.view_layers, counters.view_moves),
    ]


def _quantizer_rows(
    quantizers: list[Quantizer], counts: Tensor, errors: Tensor
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for quantizer, met, sums in zip(quantizers, counts.tolist(), errors.tolist(), strict=True):
        cast, site = quantizer.cast, quantizer.site
        seen = dict(zip(COUNTS, met, strict=True))
        found.append(
            {
                "layer": site.layer,
                "operand": site.operand,
                "parameter": site.parameter,
                "format": cast.format.name,
                **seen,
                "overflow": None if cast.uses_amax else seen["overflow"],
                "sqnr_db": _decibels(*sums),
            }
        )
    return found


def _stored_rows(stored: Iterable[StoredWeight], moves: Tensor | None) -> list[dict[str, Any]]:
    """Return nothing before the first update."""
    return [
        {
            "layer": weight.layer,
            "operand": "stored_weight",
            "format": weight.cast.format.name,
            "scale": float(weight.scale),
            **dict(zip(MOVES, counts, strict=True)),
        }
        for weight, counts in zip(stored, [] if moves is None else moves.tolist(), strict=False)
    ]


def _view_rows(layers: list[str], moves: Tensor | None) -> list[dict[str, Any]]:
    return [
        {"layer": name, "operand": "weight view", "moved": moved, "stalled": stalled}
        for name, (moved, stalled) in zip(
            layers, [] if moves is None else moves.tolist(), strict=True
        )
    ]


def _decibels(error: float, signal: float) -> float | None:
    """Signal to quantization noise; None if nothing was measured or nothing was lost."""
    return 10 * math.log10(signal / error) if error > 0 and signal > 0 else None
