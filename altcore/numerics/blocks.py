"""Block formats on tensors: shared scales, and elements rounded under them.

All on the device and exact: exponents come from the bits. Blocks lie along one axis (the
reduction axis of the product that wants them), or are square over the last two. Where the axis
ends before a block does, the last block is just shorter.

The arithmetic, on every path: as in `altcore.numerics.grids`, with one scale ``s`` and one factor
``r`` for each block.
"""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor

from altcore.errors import BadInput
from altcore.formats import BlockFormat
from altcore.numerics.grids import check_input, round_by_torch, times_scale
from altcore.numerics.native_blocks import round_blocks_native
from altcore.numerics.plan import compute_dtype
from altcore.numerics.rounding import round_unscaled
from altcore.numerics.scaling import scale_of

SMALLEST, LARGEST = -127, 127
"""Exponents of an E8M0 scale."""


@frozen(eq=False)
class Blocks:
    """A tensor under a block format; all in the compute dtype of the input and the element format.

    ``values``: like the input, each element's grid value times its block's scale (one rounding;
    none where the scale is a power of two or has few bits). ``scale``: 0-dim, the tensor's own
    scale of a two-level format, None otherwise. The tensor that is meant is ``values * scale``.

    ``scales``, ``inverse``: one a block, ``s`` and the ``r`` that the input was multiplied by.
    Blocks are numbered along the axis first, then along the other axes in row-major order; square
    ones in row-major order. `spread` gives such numbers the input's shape.
    """

    values: Tensor
    scale: Tensor | None
    scales: Tensor
    inverse: Tensor


def round_blocks(
    x: Tensor,
    fmt: BlockFormat,
    *,
    axis: int = -1,
    rounding: str = "nearest-even",
    counts: Tensor | None = None,
    errors: Tensor | None = None,
    key: int | Tensor | None = None,
) -> Blocks:
    """Round ``x`` to a block format along ``axis``.

    ``x``: any floating-point tensor with that axis; for square blocks, with two at least. A block
    with a NaN or an infinity is NaN throughout, under a two-level format the whole tensor.
    ``counts`` (see `COUNTS`) counts as overflow what is clipped to the element's largest value.
    ``errors`` (see `ERRORS`) weighs each block with its scale, but not with the tensor's own.
    ``rounding`` and ``key`` are those of `round_to_grid`; random bits are those of an element's
    index in ``x``. Raises `BadInput` for an ``x`` that cannot be so divided, and what
    `round_to_grid` refuses.
    """
    _check(x, fmt, axis, rounding, key)
    x = x.detach()
    wide = x.float() if x.dtype == torch.float16 else x  # the same numbers, and kernels for them
    found = round_blocks_native(wide, fmt, axis, rounding, counts, errors, key, fake=False)
    if found is not None:
        return Blocks(*found)
    q, each, scale, scales, inverse = _round(x, fmt, axis, rounding, counts, errors, key)
    return Blocks(q * each, scale, scales, inverse)


def fake_blocks(
    x: Tensor,
    fmt: BlockFormat,
    *,
    axis: int = -1,
    rounding: str = "nearest-even",
    counts: Tensor | None = None,
    errors: Tensor | None = None,
    key: int | Tensor | None = None,
) -> Tensor:
    """Round ``x`` to a block format and back: a tensor like ``x``, rounded once to its dtype.

    Arguments and errors are those of `round_blocks`.
    """
    _check(x, fmt, axis, rounding, key)
    x = x.detach()
    found = round_blocks_native(x, fmt, axis, rounding, counts, errors, key, fake=True)
    if found is not None:
        return found[0]
    q, each, scale, _, _ = _round(x, fmt, axis, rounding, counts, errors, key)
    if scale is None:
        return times_scale(q, each, x.dtype)
    return times_scale(q * each, scale, x.dtype)


def spread(numbers: Tensor, shape: tuple[int, ...], fmt: BlockFormat, axis: int = -1) -> Tensor:
    """Give each element the number of its block.

    ``numbers``: one a block of a tensor of ``shape`` under ``fmt`` along ``axis``, in the order
    of `Blocks`. Returns a tensor of that shape.
    """
    if fmt.is_square:
        height, width = shape[-2:]
        b, c = fmt.along(height), fmt.along(width)
        each = numbers.reshape(*shape[:-2], -(-height // b), -(-width // c))
        each = each.repeat_interleave(b, -2).repeat_interleave(c, -1)
        return each[..., :height, :width]
    length = shape[axis]
    b = fmt.along(length)
    others = [n for i, n in enumerate(shape) if i != axis % len(shape)]
    each = numbers.reshape(*others, -(-length // b)).repeat_interleave(b, -1)
    return each[..., :length].movedim(-1, axis)


def _check(x: Tensor, fmt: BlockFormat, axis: int, rounding: str, key: int | Tensor | None) -> None:
    check_input(x, fmt.element, rounding, "saturate", key)
    if not -x.ndim <= axis < x.ndim:
        raise BadInput(f"format {fmt.name}: a tensor of {x.ndim} axes has no axis {axis}")
    if fmt.is_square and x.ndim < 2:
        raise BadInput(f"format {fmt.name}: square blocks need a tensor of two axes at least")


def _round(
    x: Tensor,
    fmt: BlockFormat,
    axis: int,
    rounding: str,
    counts: Tensor | None,
    errors: Tensor | None,
    key: int | Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
    """The torch path: grid values, the scale of each, and the rest of `Blocks`."""
    dtype = compute_dtype(x.dtype, fmt)
    largest, scale = _largest(x, fmt, axis), None
    if fmt.scale_format is not None:
        inverse, scales, scale = _two_levels(largest.to(dtype), fmt)
    elif fmt.rule in ("amax", "power-of-two"):
        scales, inverse = scale_of(largest, fmt.element, power_of_two=fmt.rule == "power-of-two")
    else:
        inverse, scales = _powers(largest.to(dtype), fmt)
    shape = tuple(x.shape)
    r, each = spread(inverse, shape, fmt, axis), spread(scales, shape, fmt, axis)
    given = x.to(dtype)
    q = round_by_torch(given, fmt.element, rounding, "saturate", r, counts, errors, key, each)
    return q, each, scale, scales, inverse


def _largest(x: Tensor, fmt: BlockFormat, axis: int) -> Tensor:
    """The largest magnitude of each block: float32, float64 for float64."""
    size = x.abs() if x.dtype == torch.float64 else x.to(torch.float32).abs()
    if fmt.is_square:
        height, width = x.shape[-2:]
        b, c = fmt.along(height), fmt.along(width)
        size = torch.nn.functional.pad(size, (0, -width % c, 0, -height % b))
        size = size.unflatten(-1, (-(-width // c), c)).unflatten(-3, (-(-height // b), b))
        return size.amax((-3, -1)).flatten()
    size, length = size.movedim(axis, -1), x.shape[axis]
    b = fmt.along(length)
    size = torch.nn.functional.pad(size, (0, -length % b))
    return size.unflatten(-1, (-(-length // b), b)).amax(-1).flatten()


def _powers(largest: Tensor, fmt: BlockFormat) -> tuple[Tensor, Tensor]:
    """Return (1 / scale, scale) of MX blocks, by the format's rule."""
    finite = torch.isfinite(largest)
    fraction, exponent = torch.frexp(torch.where(finite, largest, 1.0))
    limit, inclusive = fmt.next_from
    fraction = fraction.double()
    up = fraction >= limit if inclusive else fraction > limit
    k = exponent - 1 - fmt.element_exponent + up.to(exponent.dtype)
    k = torch.where(largest > 0, k, SMALLEST).clamp(SMALLEST, LARGEST).to(torch.int32)
    nan = torch.where(finite, 0.0, torch.nan).to(largest.dtype)
    return _power(-k).to(largest.dtype) + nan, _power(k).to(largest.dtype) + nan


def _power(exponent: Tensor) -> Tensor:
    """``2^exponent`` as float32, by its bits; exponents -127 to 127."""
    half = 0x00400000  # the bits of 2^-127
    return torch.where(exponent > -127, (exponent + 127) << 23, half).view(torch.float32)


def _two_levels(largest: Tensor, fmt: BlockFormat) -> tuple[Tensor, Tensor, Tensor]:
    """Return (1 / (block scale · g), block scale, g) of a two-level format."""
    assert fmt.scale_format is not None
    whole = largest.amax() if largest.numel() else largest.new_zeros(())
    g = whole / torch.full_like(whole, fmt.largest)
    # Clamped as in scale_of, for products that are all less than 1.
    g = torch.where(torch.isfinite(whole), g.clamp(max=torch.finfo(g.dtype).max), g)
    wanted = largest / torch.full_like(largest, fmt.element.max) / g
    block, _ = round_unscaled(wanted, fmt.scale_format, "nearest-even", None)
    # 0/0 of a zero tensor, and block scales that round to 0: zeros.
    block = torch.where((g > 0) & (largest > 0), block, 0.0).to(largest.dtype)
    total = block * g
    # Not by LAYOUTS, whose entries torch.compile knows as parts of its constants, too.
    r = torch.where(total > 0, (1 / total).clamp(max=torch.finfo(total.dtype).max), 0.0)
    nan = torch.where(torch.isfinite(whole), 0.0, torch.nan)
    return r + nan, block + nan, g
