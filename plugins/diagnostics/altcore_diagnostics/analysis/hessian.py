"""Products of a loss's Hessian with vectors, without the matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Product: TypeAlias = Callable[[Tensor], Tensor]
"""Takes a vector, one entry for each parameter's element, to the Hessian times it."""


def hessian_product(loss: Tensor, parameters: Sequence[Tensor]) -> Product:
    """Return the product with the Hessian of a 0-dim ``loss``, over all parameters as one vector.

    The graph of the gradient is made once, and kept as long as the product is: so each costs about
    two backward passes, and all see the same batch statistics and dropout. Gradients in ``.grad``
    are not touched. A parameter that the loss does not reach has zeros.
    """
    first = torch.autograd.grad(
        loss, parameters, create_graph=True, allow_unused=True, materialize_grads=True
    )
    curved = [g for g in first if g.requires_grad]
    sizes = [p.numel() for p in parameters]

    def product(v: Tensor) -> Tensor:
        parts = [part.view_as(p) for part, p in zip(v.split(sizes), parameters, strict=True)]
        if not curved:
            return torch.zeros_like(v)
        second = torch.autograd.grad(
            curved,
            parameters,
            grad_outputs=[part for part, g in zip(parts, first, strict=True) if g.requires_grad],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return torch.cat([h.reshape(-1) for h in second])

    return product
