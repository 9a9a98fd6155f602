"""Rounding under autograd: the value is rounded, the derivative passes straight through.

Written so that torch's function transforms (vmap, jvp, grad, hessian) take it: every tensor is an
argument of its own, and what backward and jvp need is kept apart from the forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from altcore.errors import BadInput
from altcore.formats import AnyFormat, BlockFormat, Format, Stochastic, to_single
from altcore.numerics.blocks import fake_blocks
from altcore.numerics.rounding import fake_round
from altcore.numerics.rounding_constants import compute_dtype
from altcore.numerics.rules import Rule
from altcore.numerics.tracing import untraced


def is_clipped(x: Tensor, r: Tensor | None, fmt: Format, *, by_amax: bool) -> Tensor:
    """Return the mask of the elements to which a clipped estimator passes no gradient.

    Those whose scaled value ``x * r`` (None for 1) passes the format's range; a NaN does not.
    ``by_amax``: whether `scale_of` made ``r`` of ``x``'s own largest magnitudes, of which none is
    too large then, though the rounded product may seem so.
    """
    low, high = _ends(x.dtype, fmt, by_amax=by_amax)
    y = x.to(compute_dtype(x.dtype, fmt))
    y = y if r is None else y * r
    return (y < low) | (y > high)


@untraced  # torch.compile cannot trace the lock that a cached property has before Python 3.12
def _ends(dtype: torch.dtype, fmt: Format, *, by_amax: bool) -> tuple[float, float]:
    """The smallest and largest scaled value that a clipped gradient passes."""
    low, high = fmt.values[0], fmt.values[-1]
    if compute_dtype(dtype, fmt) == torch.float32:
        low, high = to_single(low), to_single(high)
    if by_amax:
        # Up to rounding no scaled magnitude passes the largest one that both signs have.
        return -math.inf if fmt.signed else low, math.inf
    return low, high


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
    by_amax: bool | None,
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
    x, _, r, _, fmt, *_, by_amax = inputs
    if by_amax is not None:
        clipped = is_clipped(x, r, fmt, by_amax=by_amax)
        ctx.save_for_backward(clipped)
        ctx.save_for_forward(clipped)


def _pass(ctx: Any, slope: Tensor) -> Tensor:
    for clipped in ctx.saved_tensors:
        slope = slope.masked_fill(clipped, 0)
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
        return _pass(ctx, grads[0]), *(None,) * 10


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
    by_amax: bool | None,
) -> Tensor:
    """Round ``x`` as `fake_round` or `fake_blocks` does, with a derivative of 1.

    ``by_amax``: that of `is_clipped`, where the derivative is 0; None for no clipping.

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
    inputs = x, s, r, key, fmt, axis, *parts, by_amax
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
