"""Rounding under autograd: the value is rounded, the derivative passes straight through.

Written so that torch's function transforms (vmap, jvp, grad, hessian) take it: every tensor is an
argument of its own, and what backward and jvp need is kept apart from the forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from altcore.blocks import AnyFormat, BlockFormat
from altcore.errors import BadInput
from altcore.numerics.blocks import fake_blocks
from altcore.numerics.grids import fake_round
from altcore.numerics.plan import compute_dtype


class _StraightThrough(torch.autograd.Function):
    """Rounding whose derivative is 1, or 0 outside two ends."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        s: Tensor | None,
        r: Tensor | None,
        key: int | Tensor | None,
        fmt: AnyFormat,
        axis: int,
        rounding: str,
        overflow: str,
        low: float | None,
        high: float | None,
    ) -> Tensor:
        """Round ``x`` by `fake_blocks` or `fake_round`, whichever is the format's.

        ``low``, ``high``: the scaled values between which the derivative is 1; None: everywhere.
        """
        if isinstance(fmt, BlockFormat):
            return fake_blocks(x, fmt, axis=axis, rounding=rounding, key=key)
        if overflow == "raise" and torch._C._functorch.is_batchedtensor(x):
            raise BadInput("overflow: raise cannot be had under vmap: give saturate, inf or nan")
        return fake_round(x, fmt, r=r, s=s, rounding=rounding, overflow=overflow, key=key)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep where the gradient is clipped, if it is."""
        x, _, r, _, fmt, *_, low, high = inputs
        if low is not None:
            y = x.to(compute_dtype(x.dtype, fmt))
            y = y if r is None else y * r
            outside = (y < low) | (y > high)
            ctx.save_for_backward(outside)
            ctx.save_for_forward(outside)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Pass the gradient on; the other arguments have none."""
        return _passed(ctx, grads[0]), *(None,) * 9


class _WithTangents(_StraightThrough):
    """Forward mode, too. torch.compile takes no function that has a jvp of its own."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """Pass the tangent on."""
        return _passed(ctx, tangents[0])


def _passed(ctx: Any, slope: Tensor) -> Tensor:
    for outside in ctx.saved_tensors:
        slope = slope.masked_fill(outside, 0)
    return slope


def straight_through(*inputs: Any) -> Tensor:
    """Round, with the derivative; arguments are those of `_StraightThrough.forward`."""
    kind = _StraightThrough if torch.compiler.is_compiling() else _WithTangents
    apply: Callable[..., Tensor] = kind.apply  # the base class has no annotations
    return apply(*inputs)
