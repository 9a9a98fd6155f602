"""What ranks that train one model share of their scales: each measures its own samples."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from altcore.errors import BadInput
from altcore.formats import BlockFormat
from altcore.quantization.quantization import Quantization
from altcore.quantization.quantizer import Quantizer


def amax_histories(quantization: Quantization) -> list[Tensor]:
    """Return the history of each quantizer with delayed scaling, to be changed in place.

    One that has not run yet gets an empty one, so that all ranks have the same number.
    """
    delayed = [q for q in quantization.quantizers if q.cast.scaling.kind == "delayed"]
    device = quantization.counters.counts.device
    for quantizer in delayed:
        if quantizer.history is None:
            length = quantizer.cast.scaling.history
            quantizer.history = torch.zeros(length, dtype=torch.float32, device=device)
    return [q.history for q in delayed if q.history is not None]


def share_amax(quantization: Quantization, largest: Callable[[Tensor], Tensor]) -> None:
    """Scale activations and gradients by their amax over all ranks, as ``largest`` finds it.

    Raises `BadInput` for a scale that is no amax of the tensor, or of which only a part is shared.
    """
    for quantizer in quantization.quantizers:
        if why := _why_not(quantizer):
            raise BadInput(f"{quantizer.site}: {why}", key="shared_amax")
    quantization.context.largest_of_ranks = largest


def _why_not(quantizer: Quantizer) -> str:
    cast = quantizer.cast
    if not quantizer.site.is_of_samples:
        return ""
    if isinstance(cast.format, BlockFormat) and cast.format.scale_format is not None:
        return f"the scale that {cast.format.name} gives the whole tensor cannot be shared"
    if cast.scaling.kind == "rms":
        return "its scale is a root mean square (scaling rms), not an amax"
    if cast.scaling.quantile is not None:
        return "a quantile of all ranks' elements cannot be found from those of each"
    return ""
