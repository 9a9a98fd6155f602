"""Scales: what brings a largest magnitude onto a format's largest value."""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from altcore.errors import BadInput
from altcore.formats import Format, to_single
from altcore.numerics.rounding_constants import (
    FLOAT32,
    LAYOUTS,
    is_wide,
    largest_single,
)
from altcore.numerics.tracing import is_plain, outside_modes, untraced

with outside_modes():  # altcore may be used, and so imported, in one first
    _SCALAR = torch.zeros((), dtype=torch.float32, device="cpu")  # new ones are made like it


def scale_of(
    amax: Tensor,
    fmt: Format,
    *,
    power_of_two: bool = False,
    margin: float = 1.0,
    meets: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the scale ``s`` and the factor ``r``, by which ``amax * margin`` meets ``fmt.max``.

    Or ``meets``, if it is given: below, ``max`` stands for it.

    ``s = fl(m / max)`` and ``r = fl(max / m)`` with ``m = fl(amax * margin)``, each rounded once
    to float32 (float64 for a float64 ``amax``). ``power_of_two``: ``s`` is the smallest power of
    two with ``max * s >= m``, and ``r`` its exact inverse. If ``m`` is 0, both are 1. ``r`` is
    clamped to the largest finite number, with ``s`` no less than its inverse. A NaN or infinite
    ``amax`` gives NaN for both, so that nothing scaled by them passes for a number (a block of
    the OCP MX formats does the same).

    For formats beyond float32's range (see `compute_dtype`) and a float32 ``amax``, both are
    float64 numbers and ``s`` has float32's 24 significant bits, so that ``q * s`` is exact.

    ``amax``: 0-dim or any shape, float32 or float64, not negative; the results have its shape
    and device, and nothing is read from the device. Raises `BadInput` for a ``margin`` that is
    not a positive number.
    """
    if not 0 < margin < float("inf"):
        raise BadInput(f"a margin is a positive number, not {margin}")
    if amax.dtype == torch.float32 and amax.ndim == 0 and is_plain(amax):
        single = largest_single(fmt)
        if single is not None:
            return _scale_of_number(
                float(amax),
                single if meets is None else to_single(meets),
                margin if margin == 1.0 else to_single(margin),
                power_of_two,
            )
    wide = is_wide(fmt)
    given = amax.dtype if amax.dtype == torch.float64 else torch.float32
    dtype = torch.float64 if wide else given
    layout = LAYOUTS[dtype]
    if meets is None:
        largest = _largest(fmt, dtype)
    else:
        largest = meets if dtype == torch.float64 else to_single(meets)
    m = amax.to(given)
    if margin != 1.0:
        m = m * torch.full_like(m, margin)
    m = m.to(dtype)
    # Tensors, not Python numbers: on a GPU, division by a number multiplies by its inverse.
    top = torch.full_like(m, largest)
    if power_of_two:
        s, r = _powers(m, top)
    else:
        s = m / top
        if wide and given == torch.float32:
            s = _keep_bits(s, FLOAT32.mantissa)
        r = (top / m).clamp(max=layout.largest)
        s = s.clamp(2.0 ** -(layout.bias + 1), layout.largest)
    is_zero, unusable = m == 0, ~torch.isfinite(m)
    s = s.masked_fill_(unusable, torch.nan).masked_fill_(is_zero, 1.0)
    r = r.masked_fill_(unusable, torch.nan).masked_fill_(is_zero, 1.0)
    return s, r


@untraced  # torch.compile may take a number of the format for one that changes
def _largest(fmt: Format, dtype: torch.dtype) -> float:
    return fmt.max if dtype == torch.float64 else to_single(fmt.max)


def _scale_of_number(
    amax: float, largest: float, margin: float, power_of_two: bool
) -> tuple[Tensor, Tensor]:
    """`scale_of` for one float32 on the CPU, for which a dozen tensor operations cost more.

    In float64, rounded once more to float32: of products and quotients of two float32s that is
    the same as rounding once (53 bits are more than twice 24).
    """
    m = to_single(amax * margin)
    if not math.isfinite(m):
        s = r = math.nan
    elif m == 0:
        s = r = 1.0
    elif power_of_two:
        fraction, exponent = math.frexp(m)
        top_fraction, top_exponent = math.frexp(largest)
        power = exponent - top_exponent + (fraction > top_fraction)
        power = min(max(power, 1 - FLOAT32.bias), FLOAT32.bias - 1)
        s, r = 2.0**power, 2.0**-power
    else:
        s = min(max(to_single(m / largest), 2.0 ** -(FLOAT32.bias + 1)), FLOAT32.largest)
        r = min(to_single(largest / m), FLOAT32.largest)
    return scalar(s), scalar(r)


def _powers(m: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest power of two ``s`` with ``top * s >= m``, and its inverse.

    From the bits: logarithms and powers are inexact on GPUs. Both stay normal numbers.
    """
    layout = LAYOUTS[m.dtype]
    fraction, exponent = torch.frexp(m)
    top_fraction, top_exponent = torch.frexp(top)
    power = exponent - top_exponent + (fraction > top_fraction).to(exponent.dtype)
    power = power.to(layout.integer).clamp(1 - layout.bias, layout.bias - 1)
    s = ((power + layout.bias) << layout.mantissa).view(m.dtype)
    r = ((layout.bias - power) << layout.mantissa).view(m.dtype)
    return s, r


def _keep_bits(x: Tensor, mantissa: int) -> Tensor:
    """Round float64 ``x`` to nearest with ``mantissa`` explicit bits, ties to even."""
    cut = 52 - mantissa
    bits = x.view(torch.int64)
    rounded = (bits + ((1 << (cut - 1)) - 1) + ((bits >> cut) & 1)) >> cut << cut
    return torch.where(torch.isfinite(x), rounded.view(torch.float64), x)


def empty_scalar() -> Tensor:
    """Return an uninitialized 0-dim float32 tensor on the CPU."""
    return torch.empty_like(_SCALAR)


def scalar(value: float) -> Tensor:
    """Return a 0-dim float32 tensor on the CPU, in half the time that `torch.tensor` takes."""
    result = torch.empty_like(_SCALAR)
    ctypes.c_float.from_address(result.data_ptr()).value = value
    return result
