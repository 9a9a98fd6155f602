"""Scales: the largest magnitude of a tensor, and what brings it onto a format's largest value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from altcore.errors import BadInput
from altcore.formats import Format
from altcore.numerics.grids import Given, check_floating, fake_round, round_to_grid
from altcore.numerics.native import amax_native, number, plain, round_scaled_native, single_max
from altcore.numerics.plan import FLOAT32, LAYOUTS, is_wide, to_single


def amax(x: Tensor, axis: int | Sequence[int] | None = None) -> Tensor:
    """Return the largest magnitude in ``x``, 0-dim, float32 (float64 for float64).

    With ``axis``, one or several, the largest along them: they stay, with size 1. NaN and
    infinities propagate; where there is no element it is 0.
    """
    if axis is None:
        largest = amax_native(x)
        if largest is not None:
            return largest
    check_floating(x)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    x = x.detach()
    if axis is not None:
        return _amax_along(x, axis).to(dtype)
    if x.numel() == 0:
        return torch.zeros((), dtype=dtype, device=x.device)
    low, high = torch.aminmax(x)
    return torch.maximum(-low, high).to(dtype).abs()  # abs: for all zeros, -0 is 0


def _amax_along(x: Tensor, axis: int | Sequence[int]) -> Tensor:
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    if x.numel() == 0:
        lost = {a % x.ndim for a in axes}
        return x.new_zeros([1 if i in lost else n for i, n in enumerate(x.shape)])
    return torch.maximum(x.amax(axes, keepdim=True), -x.amin(axes, keepdim=True)).abs()


def root_mean_square(x: Tensor, axis: int | Sequence[int] | None = None) -> Tensor:
    """Return the root mean square of ``x``; ``axis``, shape and dtype are those of `amax`."""
    largest = amax(x, axis)
    if x.numel() == 0:
        return largest
    axes = None if axis is None else (axis,) if isinstance(axis, int) else tuple(axis)
    # Of numbers up to 1, so that no square overflows or vanishes.
    unit = torch.where((largest > 0) & torch.isfinite(largest), largest, 1.0)
    squares = (x.detach().to(largest.dtype) / unit).square()
    return squares.mean(axes, keepdim=axis is not None).sqrt() * unit


def quantile(x: Tensor, share: float, axis: int | Sequence[int] | None = None) -> Tensor:
    """Return the smallest magnitude that at least ``share`` of the elements do not pass.

    Exact, by selection. Where that is 0 and not all elements are, or where one is not finite, it
    is what `amax` returns. ``axis``, shape and dtype are as there. Raises `BadInput` for a
    ``share`` outside (0, 1].
    """
    if not 0 < share <= 1:
        raise BadInput(f"a quantile lies in (0, 1], not at {share}")
    largest = amax(x, axis)
    if x.numel() == 0:
        return largest
    size = x.detach().abs()
    if axis is None:
        rows = size.reshape(1, -1)
    else:
        axes = [a % x.ndim for a in ((axis,) if isinstance(axis, int) else axis)]
        kept = [i for i in range(x.ndim) if i not in axes]
        rows = size.permute(*kept, *axes).reshape(*(x.shape[i] for i in kept), -1)
    count = math.ceil(Fraction(str(share)) * rows.shape[-1])
    found = rows.kthvalue(count).values.to(largest.dtype).reshape(largest.shape)
    return torch.where((found > 0) & torch.isfinite(largest), found, largest)


def scale_of(
    amax: Tensor,
    fmt: Format,
    *,
    power_of_two: bool = False,
    margin: float = 1.0,
    meets: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the scale ``s`` and the factor ``r``, by which ``amax * margin`` meets ``fmt.max``.

    Or ``meets``, where that is given: below, ``max`` stands for it.

    ``s = fl(m / max)`` and ``r = fl(max / m)`` with ``m = fl(amax * margin)``, each rounded once
    to float32 (float64 for a float64 ``amax``). ``power_of_two``: ``s`` is the smallest power of
    two with ``max * s >= m``, and ``r`` its exact inverse. Where ``m`` is 0, both are 1. ``r`` is
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
    if amax.dtype == torch.float32 and amax.ndim == 0 and plain(amax):
        single = single_max(fmt)
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
    largest = fmt.max if meets is None else meets
    largest = largest if dtype == torch.float64 else to_single(largest)
    m = amax.to(given)
    if margin != 1.0:
        m = m * torch.full_like(m, margin)
    m = m.to(dtype)
    # Tensors, not Python numbers: on a GPU, division by a number multiplies by its inverse.
    top = torch.full_like(m, largest)
    one = torch.ones_like(m)
    if power_of_two:
        s, r = _powers(m, top)
    else:
        s = m / top
        if wide and given == torch.float32:
            s = _keep_bits(s, FLOAT32.mantissa)
        r = torch.minimum(top / m, torch.full_like(m, layout.largest))
        s = s.clamp(2.0 ** -(layout.bias + 1), layout.largest)
    unusable = ~torch.isfinite(m)
    s = torch.where(m == 0, one, torch.where(unusable, torch.nan, s))
    r = torch.where(m == 0, one, torch.where(unusable, torch.nan, r))
    return s, r


def round_scaled(
    x: Tensor,
    fmt: Format,
    *,
    power_of_two: bool = False,
    margin: float = 1.0,
    meets: float | None = None,
    rounding: str = "nearest-even",
    overflow: str = "saturate",
    counts: Tensor | None = None,
    errors: Tensor | None = None,
    key: int | Tensor | None = None,
    fake: bool,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Round ``x`` by the scale of its own largest magnitude: what three functions do, at once.

    Returns ``(q, s, r)``: the scales that `scale_of` gives for `amax`, and what `round_to_grid`
    makes of them, or, under ``fake``, `fake_round`. Arguments and errors are theirs; ``dtype`` is
    that of grid values.
    """
    scaling = power_of_two, margin, meets
    made = round_scaled_native(
        x, fmt, rounding, overflow, counts, errors, key, scaling, fake=fake, dtype=dtype
    )
    if made is not None:
        return made
    s, r = scale_of(amax(x), fmt, power_of_two=power_of_two, margin=margin, meets=meets)
    given: Given = {
        "rounding": rounding,
        "overflow": overflow,
        "counts": counts,
        "errors": errors,
        "key": key,
    }
    if fake:
        return fake_round(x, fmt, r=r, s=s, **given), s, r
    return round_to_grid(x, fmt, r=r, dtype=dtype, **given), s, r


def _scale_of_number(
    amax: float, largest: float, margin: float, power_of_two: bool
) -> tuple[Tensor, Tensor]:
    """`scale_of` for one float32 on the CPU, where a dozen tensor operations cost more.

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
    return number(s), number(r)


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
