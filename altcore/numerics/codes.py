"""Numbers as a format's codes, and back."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from altcore.errors import BadInput
from altcore.formats import Format, Stochastic
from altcore.numerics.checks import check_dense, check_floating
from altcore.numerics.ordinals import ordinal
from altcore.numerics.resolve import Scale, find_coded, key_for, rule_for, scale_pair
from altcore.numerics.rounding import round_to_grid
from altcore.numerics.rounding_constants import compute_dtype
from altcore.numerics.tracing import constant, constant_tensors


def encode(
    x: Tensor,
    fmt: Format | str,
    scale: Scale = None,
    *,
    rounding: str | Stochastic = "nearest-even",
    overflow: str = "saturate",
    key: int | Tensor | None = None,
) -> Tensor:
    """Return the codes of ``x`` in the format: uint8 up to 8 bits, int32 above, of ``x``'s shape.

    Values are rounded first, as by `fake_quantize`; a value that is on the grid keeps its code
    exactly, -0 included if the format has it. Raises `BadInput` like `fake_quantize`, and for
    a NaN if the format has no NaN code; torch.compile breaks its graph for that look, and refuses
    it under ``fullgraph``. If the format has an infinity above zero alone, -inf is encoded as NaN,
    too, and refused if there is none. `altcore.pack` takes block formats.
    """
    fmt = find_coded(fmt)
    rule = rule_for(rounding, overflow)
    check_floating(x)
    key = key_for(x, rule, key)
    x = x.detach()
    _, r = scale_pair(scale, x, fmt)
    q = round_to_grid(x, fmt, rule, r=r, key=key)
    codes, minus_zero, nan, infinities = _codes(fmt)
    index = ordinal(q, fmt)
    result = codes.to(q.device)[index.clamp(min=0)]
    if minus_zero is not None:
        result = torch.where((q == 0) & torch.signbit(q), minus_zero, result)
    unknown = torch.isnan(q)
    if infinities is not None:
        low, high = infinities
        result = torch.where(torch.isposinf(q), high, result)
        if low is None:  # an unsigned format: what lies below it is not a number there
            unknown |= torch.isneginf(q)
        else:
            result = torch.where(torch.isneginf(q), low, result)
    if nan is not None:
        result = torch.where(unknown, nan, result)
    elif bool(unknown.any()):
        if bool(torch.isnan(q).any()):
            raise BadInput(f"NaN cannot be encoded: format {fmt.name} has no NaN code")
        raise BadInput(
            f"-inf cannot be encoded: format {fmt.name} has neither a code for it nor one for NaN",
            hint="overflow='saturate' gives the smallest value instead",
        )
    return result.to(torch.uint8 if fmt.bits <= 8 else torch.int32)


def decode(codes: Tensor, fmt: Format | str, scale: Scale = None) -> Tensor:
    """Return the values of ``codes`` (any integer dtype), times ``scale``, in the compute dtype.

    That is float32, or float64 for formats beyond its range. Raises `BadInput` for
    tensors that are not of integers, and for codes the format does not have.
    """
    fmt = find_coded(fmt)
    check_dense(codes, "codes")
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise BadInput(f"codes: a tensor of integer codes is needed, not of {codes.dtype}")
    dtype = compute_dtype(torch.float32, fmt)
    index = codes.to(torch.int64)
    count = len(fmt.code_values)
    if index.numel() and not (int(index.min()) >= 0 and int(index.max()) < count):
        raise BadInput(f"codes: format {fmt.name} has codes 0 to {count - 1}")
    values = _decoded(fmt, dtype).to(codes.device)[index]
    s, _ = scale_pair(scale, values, fmt)
    return values if s is None else values * s.to(dtype)


@constant_tensors
def _codes(fmt: Format) -> tuple[Tensor, int | None, int | None, tuple[int | None, int] | None]:
    """The code of each of ``fmt.values``; those of -0, of NaN, and of the two infinities."""
    codes, minus_zero, nan, infinities = _code_numbers(fmt)
    return torch.tensor(codes, dtype=torch.int64, device="cpu"), minus_zero, nan, infinities


@constant  # torch.compile cannot trace the lock of a cached property
def _code_numbers(
    fmt: Format,
) -> tuple[tuple[int, ...], int | None, int | None, tuple[int | None, int] | None]:
    first: dict[float, int] = {}
    minus_zero: int | None = None
    for code, value in enumerate(fmt.code_values):
        if value == 0 and math.copysign(1.0, value) < 0:
            minus_zero = code if minus_zero is None else minus_zero
        else:
            first.setdefault(value, code)
    if minus_zero is not None:
        first.setdefault(0.0, minus_zero)
    codes = tuple(first[v] for v in fmt.values)
    nan = fmt.nan_codes[0] if fmt.nan_codes else None
    infinities = (first.get(-math.inf), first[math.inf]) if fmt.inf_codes else None
    return codes, minus_zero, nan, infinities


@constant_tensors
def _decoded(fmt: Format, dtype: torch.dtype) -> Tensor:
    return torch.tensor(fmt.code_values, dtype=dtype, device="cpu")
