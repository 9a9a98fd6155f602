"""Rounding a tensor to a format's grid, scaled, counted, with a choice of overflow.

The arithmetic, on every path: the scaled value is ``x * r`` rounded to the compute dtype (no
division, no fused multiply-add), that is rounded to the grid, and `fake_round` multiplies the
grid value by ``s`` and rounds once, to ``x``'s dtype.
"""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor

from altcore.errors import BadInput
from altcore.formats import Format
from altcore.numerics.hashing import check_key, random_bits
from altcore.numerics.native import plain, round_native
from altcore.numerics.plan import check_rules, compute_dtype
from altcore.numerics.rounding import round_unscaled

COUNTS = ("elements", "overflow", "flushed", "nonfinite")
"""The columns of a counts tensor (int64).

``overflow``: finite elements whose rounding passed the largest (or smallest) value;
``flushed``: elements other than 0 and -0 that became zero, and did not overflow to it;
``nonfinite``: NaN and infinite elements. The three exclude one another.
"""

ERRORS = ("noise", "signal")
"""The entries of an errors tensor (float64): sums over the elements that are finite.

``noise``: of ``(q - y)^2``, ``signal``: of ``y^2``, where ``y`` is the scaled value ``x * r`` in
the compute dtype and ``q`` its grid value; where rounding overflows, the largest one, whatever
replaces it. Both are in grid units, under blocks times the block's scale, so that
``10 * log10(signal / noise)`` is the signal-to-quantization-noise ratio in dB.
"""


class Given(TypedDict):
    """What the functions that round have in common; see `round_to_grid`."""

    rounding: str
    overflow: str
    counts: Tensor | None
    errors: Tensor | None
    key: int | Tensor | None


def round_to_grid(
    x: Tensor,
    fmt: Format,
    *,
    rounding: str = "nearest-even",
    overflow: str = "saturate",
    r: Tensor | None = None,
    counts: Tensor | None = None,
    errors: Tensor | None = None,
    key: int | Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Round ``x * r`` to grid values of ``fmt``, unscaled.

    ``x``: any floating-point tensor. ``r``: None, a 0-dim tensor, or one that broadcasts to
    ``x``'s shape. ``counts``: an int64 tensor with one entry for each of `COUNTS`, on ``x``'s
    device, added to; ``errors``: a float64 one with those of `ERRORS`, likewise. ``key``: for
    stochastic rounding, an int or a 0-dim int64 tensor. ``dtype``: that of the result, to which
    grid values are rounded once if it has not all of them; None for the compute dtype (see
    `compute_dtype`).

    Returns a tensor of ``x``'s shape. NaN gives NaN in every format, an infinity follows the
    overflow rule, and a zero has the sign of ``x``.
    Raises `BadInput` for an ``x`` that is not floating-point, unknown rules, rules the format
    has no code for, ``counts`` and ``errors`` that are not so, and any overflow under
    ``overflow="raise"`` (which reads from the device).
    """
    # What the kernels take needs no other check.
    asked = (fmt, rounding, overflow, r, None, counts, errors, key)
    q = round_native(x, *asked, fake=False, dtype=dtype)
    if q is not None:
        return q
    check_input(x, fmt, rounding, overflow, key)
    x = x.detach()
    if x.dtype == torch.float16:  # float32 has the same numbers, and kernels for them
        x = x.float()
        q = round_native(x, *asked, fake=False, dtype=dtype)
        if q is not None:
            return q
    q = round_by_torch(x, fmt, rounding, overflow, r, counts, errors, key)
    return q if dtype is None else q.to(dtype)


def fake_round(
    x: Tensor,
    fmt: Format,
    *,
    r: Tensor | None,
    s: Tensor | None,
    rounding: str = "nearest-even",
    overflow: str = "saturate",
    counts: Tensor | None = None,
    errors: Tensor | None = None,
    key: int | Tensor | None = None,
) -> Tensor:
    """Round ``x * r`` to the grid of ``fmt``, multiply by ``s``, round once to ``x``'s dtype.

    ``s``: like ``r``, its counterpart from `scale_of`. The other arguments, and the errors, are
    those of `round_to_grid`. Returns a tensor like ``x``.
    """
    result = round_native(x, fmt, rounding, overflow, r, s, counts, errors, key, fake=True)
    if result is not None:
        return result
    given: Given = {
        "rounding": rounding,
        "overflow": overflow,
        "counts": counts,
        "errors": errors,
        "key": key,
    }
    q = round_to_grid(x, fmt, r=r, **given)
    return times_scale(q, s, x.dtype)


def times_scale(q: Tensor, s: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``q * s`` rounded once to ``dtype``; ``s`` None means 1."""
    s = None if s is None else s.to(q.dtype)
    if dtype == q.dtype:
        return q if s is None else q * s
    # A product of two float32s is exact in float64, and rounded to odd in float32 it keeps
    # what the second rounding, to 16 bits, has to know.
    product = q.double() if s is None else q.double() * s.double()
    single = product.to(torch.float32)
    if dtype == torch.float32:
        return single
    bits = single.view(torch.int32)
    magnitude = single.double().abs()
    inexact = magnitude != product.abs()
    bits = torch.where(magnitude > product.abs(), bits - 1, bits)
    bits = torch.where(inexact & torch.isfinite(product), bits | 1, bits)
    return bits.view(torch.float32).to(dtype)


def check_input(
    x: Tensor, fmt: Format, rounding: str, overflow: str, key: int | Tensor | None
) -> None:
    """Raise `BadInput` for anything that `round_to_grid` cannot round."""
    check_rules(fmt, rounding, overflow)
    check_floating(x)
    if key is not None:
        check_key(key)
    elif rounding == "stochastic":
        raise BadInput("stochastic rounding needs a key")


def check_floating(x: Tensor, name: str = "x") -> None:
    """Raise `BadInput` unless ``x`` is a dense float16, bfloat16, float32 or float64 tensor.

    ``name`` is the argument, for the message.
    """
    check_dense(x, name)
    if x.dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        right = f"torch.view_as_real({name})" if x.is_complex() else f"{name}.float()"
        raise BadInput(
            f"{name}: float16, bfloat16, float32 or float64 is needed, not {x.dtype}: give {right}"
        )


_INSTEAD = {
    "DTensor": "a distributed one: give {0}.to_local() or {0}.full_tensor()",
    "MaskedTensor": "a masked one: give {0}.to_tensor(0.0)",
    "UninitializedParameter": "a lazy one: run its module once, which gives {0} its shape",
    "UninitializedBuffer": "a lazy one: run its module once, which gives {0} its shape",
}
"""By their classes, tensors whose values are elsewhere, and what would be right."""


def check_dense(x: Tensor, name: str) -> None:
    """Raise `BadInput` unless ``x`` is a tensor that holds each of its values by itself.

    And unless it can be rounded at all: `torch.jit.trace` would record the torch operations only.
    """
    if not isinstance(x, Tensor):
        raise BadInput(f"{name}: a tensor is needed, not {type(x).__name__}")
    if instead := _INSTEAD.get(type(x).__name__):
        raise BadInput(f"{name}: an ordinary tensor is needed, not {instead.format(name)}")
    if not torch.compiler.is_compiling() and torch._C._is_tracing():
        raise BadInput(
            f"{name}: torch.jit.trace cannot record how a tensor is rounded: use torch.export or "
            "torch.compile, or trace the model unquantized"
        )
    if x.is_nested:
        raise BadInput(f"{name}: a dense tensor is needed, not a nested one: give its parts")
    if x.layout != torch.strided:
        kind = str(x.layout).removeprefix("torch.")
        raise BadInput(f"{name}: a dense tensor is needed, not {kind}: give {name}.to_dense()")
    if x.is_quantized:
        raise BadInput(f"{name}: torch has quantized it to {x.dtype}: give {name}.dequantize()")
    if x.is_meta:
        raise BadInput(f"{name}: a meta tensor has no values: give one on a CPU or GPU")
    if plain(x) and x.numel() and not x.data_ptr() and not x._is_zerotensor():
        raise BadInput(f"{name}: its storage was given back: there are no values to read")


def check_sums(x: Tensor, counts: Tensor | None, errors: Tensor | None) -> None:
    """Raise `BadInput` unless these can be added to: one number for each of what they count."""
    for name, sums, of, dtype in (
        ("counts", counts, COUNTS, torch.int64),
        ("errors", errors, ERRORS, torch.float64),
    ):
        if sums is None:
            continue
        if sums.dtype != dtype or sums.shape != (len(of),) or sums.device != x.device:
            raise BadInput(
                f"{name}: {len(of)} numbers are needed, {dtype} on {x.device}, not "
                f"{list(sums.shape)}, {sums.dtype} on {sums.device}"
            )


def round_by_torch(
    x: Tensor,
    fmt: Format,
    rounding: str,
    overflow: str,
    r: Tensor | None,
    counts: Tensor | None,
    errors: Tensor | None,
    key: int | Tensor | None,
    weight: Tensor | None = None,
) -> Tensor:
    """`round_to_grid` in torch operations; ``weight`` multiplies what `ERRORS` squares."""
    check_sums(x, counts, errors)
    y = x.to(compute_dtype(x.dtype, fmt))
    if r is not None:
        y = y * r.to(y.dtype)
    noise = None
    if rounding == "stochastic":
        assert key is not None
        noise = random_bits(x.shape, key, x.device)
    q, over = round_unscaled(y, fmt, rounding, noise)
    if counts is not None:
        counts += _count(x, q, over)
    if errors is not None:
        errors += _square(y, q, weight)
    if overflow == "raise" and bool(over.any()):
        raise BadInput(f"{int(over.sum())} value(s) overflow format {fmt.name}")
    if overflow == "inf":
        q = torch.where(over, torch.copysign(torch.full_like(q, torch.inf), q), q)
    elif overflow == "nan":
        q = torch.where(over, torch.nan, q)
    return q


def _count(x: Tensor, q: Tensor, over: Tensor) -> Tensor:
    finite = torch.isfinite(x)
    elements = torch.full((), x.numel(), dtype=torch.int64, device=x.device)
    flushed = (q == 0) & (x != 0) & finite & ~over
    return torch.stack([elements, (over & finite).sum(), flushed.sum(), (~finite).sum()])


def _square(y: Tensor, q: Tensor, weight: Tensor | None) -> Tensor:
    finite = torch.isfinite(y)
    pair = torch.stack([q.double() - y.double(), y.double()])
    if weight is not None:
        pair = pair * weight.double()
    return torch.where(finite, pair, 0.0).square().reshape(2, y.numel()).sum(1)
