"""Rounding under autograd: the value is rounded, the derivative passes straight through.

Written so that torch's function transforms (vmap, jvp, grad, hessian) take it: every tensor is an
argument of its own, and what backward and jvp need is kept apart from the forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from altcore.errors import BadInput
from altcore.formats import AnyFormat, BlockFormat, Stochastic
from altcore.numerics.blocks import fake_blocks
from altcore.numerics.rounding import fake_round
from altcore.numerics.rounding_constants import compute_dtype
from altcore.numerics.rules import Rule


def _rounded(
    x: Tensor,
    s: Tensor | None,
    r: Tensor | None,
    key: int | Tensor | None,
    fmt: AnyFormat,
    axis: int,
    rounding: str,
    overflow: str,
    random_bits: int,
    few_bits: str,
    low: float | None,
    high: float | None,
) -> Tensor:
    """Round ``x`` by `fake_blocks` or `fake_round`, whichever is the format's.

    The rule comes in its parts: torch takes tuples of arguments apart.
    """
    rule = Rule(rounding, overflow, Stochastic(random_bits, few_bits))
    if isinstance(fmt, BlockFormat):
        return fake_blocks(x, fmt, rule, axis=axis, key=key)
    if rule.overflow == "raise" and torch._C._functorch.is_batchedtensor(x):
        raise BadInput("overflow: raise does not work under vmap: give saturate, inf or nan")
    return fake_round(x, fmt, rule, r=r, s=s, key=key)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor | None = None) -> None:
    """Keep the mask of elements whose gradient is clipped, if any is."""
    x, _, r, _, fmt, *_, low, high = inputs
    if low is not None:
        y = x.to(compute_dtype(x.dtype, fmt))
        y = y if r is None else y * r
        outside = (y < low) | (y > high)
        ctx.save_for_backward(outside)
        ctx.save_for_forward(outside)


def _pass(ctx: Any, slope: Tensor) -> Tensor:
    for outside in ctx.saved_tensors:
        slope = slope.masked_fill(outside, 0)
    return slope


class _Plain(torch.autograd.Function):
    """For backward passes only: torch takes a fifth of the time to call it, and compiles it."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        """Round."""
        _keep(ctx, inputs)
        return _rounded(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Pass the gradient on; the other arguments have none."""
        return _pass(ctx, grads[0]), *(None,) * 11


class _Transformed(torch.autograd.Function):
    """For torch's function transforms and forward mode, too."""

    generate_vmap_rule = True
    forward = staticmethod(_rounded)
    setup_context = staticmethod(_keep)
    backward = _Plain.backward

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """Pass the tangent on."""
        return _pass(ctx, tangents[0])


def straight_through(
    x: Tensor,
    s: Tensor | None,
    r: Tensor | None,
    key: int | Tensor | None,
    fmt: AnyFormat,
    *,
    axis: int,
    rule: Rule,
    ends: tuple[float, float] | None,
) -> Tensor:
    """Round ``x`` as `fake_round` or `fake_blocks` does, with a derivative of 1.

    ``ends``: the scaled values beyond which it is 0; None for none.

    Raises `BadInput` for transforms within a compiled function, whose derivatives torch loses,
    and under vmap for the overflow rule ``raise``, and for a torch that cannot view bits there.
    """
    is_transformed = torch._C._are_functorch_transforms_active()
    if is_transformed and torch.compiler.is_compiling():
        raise BadInput(
            "torch.compile loses the derivatives that torch.func takes within what it compiles: "
            "leave what calls torch.func uncompiled"
        )
    is_dual = torch.autograd.forward_ad._current_level >= 0
    kind = _Transformed if is_transformed or is_dual else _Plain
    apply: Callable[..., Tensor] = kind.apply  # the base class has no annotations
    parts = rule.rounding, rule.overflow, *rule.stochastic
    inputs = x, s, r, key, fmt, axis, *parts, *(ends or (None, None))
    if not is_transformed:
        return apply(*inputs)
    try:
        return apply(*inputs)
    except RuntimeError as error:
        if "aten::view.dtype" not in str(error):
            raise
        raise BadInput(
            f"vmap over a rounding needs torch 2.13 or newer, and this is torch {torch.__version__}"
        ) from error
