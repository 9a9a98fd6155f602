"""The scales that the elements of a block share, in torch operations on every device.

Blocks lie along one axis (the reduction axis of the product that needs them), or are square over
the last two. If the axis ends before a block does, the last block is shorter. Exponents come from
the bits, so that scales are exact.
"""

from __future__ import annotations

import torch
from attrs import define
from torch import Tensor

from altcore.formats import BlockFormat
from altcore.numerics.rules import NEAREST
from altcore.numerics.scaling import scale_of
from altcore.numerics.torch_rounding import round_unscaled
from altcore.numerics.tracing import indices

SMALLEST, LARGEST = -127, 127
"""Exponents of an E8M0 scale."""


@define(eq=False)  # not frozen: torch.compile traces the making of one
class RoundedBlocks:
    """A tensor rounded to a block format; all in the compute dtype of the input and the element.

    ``values``: like the input, each element's grid value times its block's scale (one rounding;
    none if the scale is a power of two or has few bits). ``scale``: 0-dim, the tensor's own
    scale of a two-level format, None otherwise. The result of rounding is ``values * scale``.

    ``scales``, ``inverse``: for each block, ``s`` and the ``r`` that the input was multiplied by.
    Blocks are numbered along the axis first, then along the other axes in row-major order; square
    ones in row-major order. `spread` gives such numbers the input's shape.
    """

    values: Tensor
    scale: Tensor | None
    scales: Tensor
    inverse: Tensor


def spread(numbers: Tensor, shape: tuple[int, ...], fmt: BlockFormat, axis: int = -1) -> Tensor:
    """Give each element the number of its block.

    ``numbers``: one for each block of a tensor of ``shape`` in ``fmt`` along ``axis``, in the order
    of `RoundedBlocks`. Returns a tensor of that shape.
    """
    if fmt.is_square:
        height, width = shape[-2:]
        b, c = fmt.along(height), fmt.along(width)
        each = numbers.reshape(*shape[:-2], -(-height // b), -(-width // c))
        return _repeat(_repeat(each, b, -2, height), c, -1, width)
    length = shape[axis]
    b = fmt.along(length)
    others = [n for i, n in enumerate(shape) if i != axis % len(shape)]
    each = numbers.reshape(*others, -(-length // b)).movedim(-1, axis)
    # Repeated in place: a turned result would be read across its rows.
    return _repeat(each, b, axis, length)


def _repeat(numbers: Tensor, times: int, axis: int, length: int) -> Tensor:
    """Repeat each number so many times along ``axis``, the last ones up to ``length`` in all."""
    if not torch.compiler.is_compiling():
        return numbers.repeat_interleave(times, axis).narrow(axis, 0, length)
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    # With a quotient for an index, a shorter block is left unwritten, but others are read faster.
    all_full = statically_known_true(length % times == 0)
    places = (
        torch.arange(length, device=numbers.device)
        if all_full
        else indices(length, torch.int64, numbers.device)
    )
    return numbers.index_select(axis, places // times)


def largest_of_blocks(x: Tensor, fmt: BlockFormat, axis: int) -> Tensor:
    """Return the largest magnitude of each block: float32, float64 for float64."""
    size = x.abs() if x.dtype == torch.float64 else x.to(torch.float32).abs()
    if fmt.is_square:
        height, width = x.shape[-2:]
        b, c = fmt.along(height), fmt.along(width)
        size = _padded(_padded(size, -1, -width % c), -2, -height % b)
        size = size.unflatten(-1, (-(-width // c), c)).unflatten(-3, (-(-height // b), b))
        return size.amax((-3, -1)).flatten()
    axis, length = axis % x.ndim, x.shape[axis]
    b = fmt.along(length)
    size = _padded(size, axis, -length % b).unflatten(axis, (-(-length // b), b))
    return size.amax(axis + 1).movedim(axis, -1).flatten()


def _padded(x: Tensor, axis: int, zeros: int) -> Tensor:
    """Add zeros at the end of an axis; torch copies ``x`` for none, too."""
    if not (torch.compiler.is_compiling() or zeros):  # which may not be known while compiling
        return x
    after = x.ndim - 1 - axis % x.ndim
    if not (torch.compiler.is_compiling() or x.numel()):
        # torch 2.8 pads no axis of a tensor that has another one without elements.
        shape = [*x.shape]
        shape[axis] += zeros
        return x.new_zeros(shape)
    return torch.nn.functional.pad(x, [0, 0] * after + [0, zeros])


def scales_of_blocks(
    largest: Tensor, fmt: BlockFormat, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return (scales, inverses, the tensor's own scale or None), by the format's rule.

    ``largest``: the blocks' largest magnitudes; ``dtype``: the compute dtype.
    """
    if fmt.scale_format is not None:
        return _two_levels(largest.to(dtype), fmt)
    if fmt.rule in ("amax", "power-of-two"):
        by_power = fmt.rule == "power-of-two"
        return *scale_of(largest, fmt.element, power_of_two=by_power), None
    return *_powers(largest.to(dtype), fmt), None


def _powers(largest: Tensor, fmt: BlockFormat) -> tuple[Tensor, Tensor]:
    """Return (scale, 1 / scale) of MX blocks, by the format's rule."""
    finite = torch.isfinite(largest)
    fraction, exponent = torch.frexp(torch.where(finite, largest, 1.0))
    limit, inclusive = fmt.next_from
    fraction = fraction.double()
    up = fraction >= limit if inclusive else fraction > limit
    k = exponent - 1 - fmt.element_exponent + up.to(exponent.dtype)
    k = torch.where(largest > 0, k, SMALLEST).clamp(SMALLEST, LARGEST).to(torch.int32)
    nan = torch.where(finite, 0.0, torch.nan).to(largest.dtype)
    return _power(k).to(largest.dtype) + nan, _power(-k).to(largest.dtype) + nan


def _power(exponent: Tensor) -> Tensor:
    """``2^exponent`` as float32, by its bits; exponents -127 to 127."""
    half = 0x00400000  # the bits of 2^-127
    return torch.where(exponent > -127, (exponent + 127) << 23, half).view(torch.float32)


def _two_levels(largest: Tensor, fmt: BlockFormat) -> tuple[Tensor, Tensor, Tensor]:
    """Return (block scale, 1 / (block scale · g), g) of a two-level format."""
    assert fmt.scale_format is not None
    whole = largest.amax() if largest.numel() else largest.new_zeros(())
    g = whole / torch.full_like(whole, fmt.largest)
    # Clamped as in scale_of, for products that are all less than 1.
    g = torch.where(torch.isfinite(whole), g.clamp(max=torch.finfo(g.dtype).max), g)
    wanted = largest / torch.full_like(largest, fmt.element.max) / g
    block, _ = round_unscaled(wanted, fmt.scale_format, NEAREST, None)
    # 0/0 of a zero tensor, and block scales that round to 0: zeros.
    block = torch.where((g > 0) & (largest > 0), block, 0.0).to(largest.dtype)
    total = block * g
    # Not by LAYOUTS, whose entries torch.compile knows as parts of its constants, too.
    r = torch.where(total > 0, (1 / total).clamp(max=torch.finfo(total.dtype).max), 0.0)
    nan = torch.where(torch.isfinite(whole), 0.0, torch.nan)
    return block + nan, r + nan, g
