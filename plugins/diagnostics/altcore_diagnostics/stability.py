"""The diagnostic ``stability``: parameters that are not numbers, and those that get no update."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import attrs
import torch
from attrs.validators import ge
from torch import Tensor

from altcore.plugin import MeasureTable, hookimpl, layer_of, nan_where_not_finite, setting

if TYPE_CHECKING:
    from altcore.plugin import Run, Step


@attrs.define(eq=False)
class Stability:
    """Counts of NaN and infinities in the parameters, and the share of zero updates.

    Measures, over all parameters, quantized or not:

    - ``nan_count`` and ``inf_count``: elements that are NaN, or infinite, after the update and,
      where weights are stored, on their grids;
    - ``zero_update_share``, in 0..1: elements of the trained parameters that the optimizer left
      exactly where they were, before stored weights go back on their grids: no gradient and no
      decay, or an update below the weight's own last bit. Unlike a stall, no format did this;
    - the same for one layer, as ``nan_count/layer.name`` and so on.

    A step that is not finite is discarded, and then nothing is measured.
    """

    needs: ClassVar[tuple[str, ...]] = ("weights_before", "weights_proposed")
    interval: int = setting(50, help="steps between measurements", validator=ge(1))

    @hookimpl
    @torch.no_grad()
    def post_step(self, run: Run, step: Step) -> dict[str, Tensor]:
        """Look at the parameters after the update, on the device."""
        counts = MeasureTable(lambda c: {"nan_count": c[0].long(), "inf_count": c[1].long()})
        updates = MeasureTable(lambda columns: {"zero_update_share": columns[0] / columns[1]})
        proposed = step.weights_proposed or {}
        for name, parameter in run.model.named_parameters():
            w, layer = parameter.detach(), layer_of(name)
            nans = torch.count_nonzero(torch.isnan(w))
            lost = torch.count_nonzero(torch.isnan(nan_where_not_finite(w)))
            counts.add("", layer, nans, lost - nans)
            before = (step.weights_before or {}).get(name)
            if before is not None and name in proposed:
                moved = torch.count_nonzero(before != proposed[name])
                number = torch.full_like(moved, before.numel())
                updates.add("", layer, number - moved, number)
        return counts.measures() | updates.measures()
