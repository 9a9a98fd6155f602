"""Whether the updated weights are finite."""

from __future__ import annotations

import math

import torch
from attrs import define, field
from torch import Tensor, nn

from altcore.hooks import NonFinite


@define(eq=False)
class WeightCheck:
    """Finds weights that an update made NaN or infinite, and says which step did.

    The norm is one pass over the weights, on the device. It travels with the next step's one host
    read, so that it is known before that step's optimizer.
    """

    model: nn.Module
    parameters: list[nn.Parameter] = field(init=False)
    since: int | None = field(init=False, default=None)
    """The step that made the weights what they are; None while they are finite."""

    def __attrs_post_init__(self) -> None:
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]

    def norm(self) -> Tensor:
        """Return the L2 norm of all trained parameters, 0-dim."""
        norms = torch._foreach_norm([p.detach() for p in self.parameters])
        return torch.linalg.vector_norm(torch.stack(norms))

    def judge(self, norm: float, step: int) -> NonFinite | None:
        """Return the first weight that is not finite, None if all are.

        ``norm`` is what `norm` returned after ``step``. Only if it is not finite is there more to
        read: large weights may have such a norm, too.
        """
        found = None if math.isfinite(norm) else self._first()
        if found is None:
            self.since = None
            return None
        self.since = step if self.since is None else self.since
        return NonFinite("weights", found[0], value=found[1], arose=self.since)

    def _first(self) -> tuple[str, float] | None:
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                bad = parameter.detach()[~torch.isfinite(parameter.detach())]
                if bad.numel():
                    return name, float(bad[0])
        return None
