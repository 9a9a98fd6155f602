"""The diagnostic ``stiffness``: how far apart the grid's values lie where the weights are.

Stiffness at a weight is the width of the grid interval that contains its magnitude, in the
weight's own units: the format's spacing there times the scale. It is constant in fixed point and
grows with the magnitude in floating point. An update much smaller than it is lost in a stored
weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import attrs
import torch
from attrs.validators import ge
from torch import Tensor

from altcore.plugin import (
    MeasureTable,
    hookimpl,
    interval_width_of,
    join_moments,
    mean_and_std,
    moments,
    nan_where_not_finite,
    quantized_weights,
    setting,
)

if TYPE_CHECKING:
    from altcore.plugin import Run, Step

BINS = 64
LOWEST = -48
"""Exponent of the first bin: 2^-48 to 2^-47; the last one is from 2^15."""


@attrs.define(eq=False)
class Stiffness:
    """Mean, spread and histogram of the grid interval's width at the weights.

    Measures, for each KIND of ``stored`` (weights that live on the grid) and ``view`` (float32
    masters that a product sees on it), over all elements, each counting once:

    - ``KIND_mean`` and ``KIND_std`` (of the population), in the weights' units;
    - ``KIND_histogram``, 64 shares that add up to 1: bin i holds the widths from 2^(i-48) to below
      2^(i-47). What is narrower is in the first bin, what is wider in the last;
    - the same for one layer, as ``KIND_mean/layer.name`` and so on.

    On a grid point the interval is the one away from zero, at the largest value and beyond the
    one below it. Weights and scales are those of the step's forward pass, before the update.
    If a weight is not finite, mean and std are NaN, and the histogram is of the others.
    """

    interval: int = setting(50, help="steps between measurements", validator=ge(1))

    @hookimpl
    @torch.no_grad()
    def post_backward(self, run: Run, step: Step) -> dict[str, Tensor]:
        """Measure the weights of the step, on the device."""
        table = MeasureTable(_finish, _join)
        for weight in quantized_weights(run):
            width = interval_width_of(step, weight) + nan_where_not_finite(weight.parameter)
            table.add(weight.kind, weight.layer, moments(width), histogram(width))
        return table.measures()


def histogram(width: Tensor) -> Tensor:
    """Return how many elements lie in each bin, int64; NaN in none."""
    info = torch.finfo(width.dtype)
    mantissa, integer = (23, torch.int32) if info.bits == 32 else (52, torch.int64)
    # By the exponent's bits first; there the last entry is that of NaN.
    number = 1 << (info.bits - 1 - mantissa)
    bits = width.contiguous().view(integer).flatten() >> mantissa
    index = bits.bitwise_and_(number - 1).to(torch.int64)
    counts = torch.zeros(number, dtype=torch.int64, device=width.device)
    counts.scatter_add_(0, index, torch.ones_like(index))
    low = number // 2 - 1 + LOWEST
    inner = counts[low + 1 : low + BINS - 1]
    narrow, wide = counts[: low + 1].sum(), counts[low + BINS - 1 : -1].sum()
    return torch.cat([narrow[None], inner, wide[None]])


def _join(rows: Tensor) -> Tensor:
    return torch.cat([join_moments(rows[:, :3]), rows[:, 3:].sum(0)])


def _finish(columns: Tensor) -> Mapping[str, Tensor]:
    mean, std = mean_and_std(*columns[:3])
    counts = columns[3:]
    return {"mean": mean, "std": std, "histogram": counts / counts.sum(0)}
