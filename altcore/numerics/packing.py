"""Tensors as they would lie in memory: codes without a gap between them, and scales.

`pack` and `unpack` are `encode` and `decode` for storage, and take block formats too. Codes
narrower than a byte follow one another in a stream of bits, low bits first: of 4-bit codes the
first is the low half of a byte, and four 6-bit codes fill three bytes. That is how a little-endian
machine has them in a word, and what PyTorch's packed 4-bit type means.
"""

from __future__ import annotations

import math

import torch
from attrs import frozen
from torch import Tensor

from altcore.errors import BadInput
from altcore.formats import AnyFormat, BlockFormat, Format, Stochastic
from altcore.numerics.block_scales import spread
from altcore.numerics.blocks import round_blocks
from altcore.numerics.checks import check_axis, check_floating, refuse
from altcore.numerics.codes import decode, encode
from altcore.numerics.resolve import Scale, block_rule_for, key_for, resolve_format, scale_pair
from altcore.numerics.rounding_constants import compute_dtype
from altcore.numerics.rules import Rule

POWER_RULES = ("floor", "ceil", "rceil", "even")
"""The rules whose scales are those of E8M0."""
E8M0_NAN = 255


@frozen(eq=False)
class Packed:
    """A tensor in a format's codes.

    ``format``, and the ``shape`` of the tensor. ``axis``: along which blocks lie, counted from
    0; None for formats of single numbers and for square blocks.
    ``codes``: uint8, one dimension; a stream of bits in which each code has the format's width,
    low bits first, and the last byte is filled up with zeros. The order is that of the tensor (C
    order), with ``axis`` moved last.
    ``scales``: uint8, one code a block in the same order, of E8M0 or of the format's scale format;
    None for formats of single numbers. ``scale``: 0-dim, by which everything is multiplied:
    float32, float64 for formats beyond its range, or None.
    """

    format: AnyFormat
    shape: tuple[int, ...]
    axis: int | None
    codes: Tensor
    scales: Tensor | None
    scale: Tensor | None

    @property
    def nbytes(self) -> int:
        """Bytes of the codes and of all scales."""
        parts = (self.codes, self.scales, self.scale)
        return sum(t.numel() * t.element_size() for t in parts if t is not None)


def pack(
    x: Tensor,
    fmt: AnyFormat | str,
    scale: Scale = None,
    *,
    axis: int | None = None,
    rounding: str | Stochastic = "nearest-even",
    overflow: str = "saturate",
    key: int | Tensor | None = None,
) -> Packed:
    """Round ``x`` to a format of at most 8 bits, and lay its codes out without gaps.

    A format of single numbers takes ``scale``, a number or a tensor of one element, ``rounding``,
    ``overflow`` and ``key`` as `encode` does. A block format makes its own scales, of blocks along
    ``axis`` (the last if None; square ones over the last two), and saturates. `unpack` gives
    exactly the numbers that `fake_quantize` and `altcore.numerics.blocks.round_blocks` give for
    float32, but for the sign of a zero if the format has no -0.

    Raises `BadInput` as `encode` does, for wider formats, for a length that blocks do not divide,
    for an ``axis`` that there is not, or that no blocks lie along, for a block format with a
    ``scale``, an ``overflow`` but saturate, or a rule whose scales have no codes.
    """
    fmt = resolve_format(fmt)
    check_floating(x)
    if isinstance(fmt, BlockFormat):
        rule = block_rule_for(fmt, rounding, overflow)
        along = _check_blocks(x, fmt, scale, axis)
        return _pack_blocks(x, fmt, along, rule, key_for(x, rule, key))
    _check_width(fmt, fmt)
    refuse(f"format {fmt.name} has no blocks", axis=axis)
    s = _one_scale(scale, x, fmt)
    codes = encode(x, fmt, s, rounding=rounding, overflow=overflow, key=key)
    return Packed(fmt, tuple(x.shape), None, pack_bits(codes, fmt.bits), None, s)


def unpack(packed: Packed) -> Tensor:
    """Return the tensor that `pack` was given, as the format has it: codes times scales.

    float32, or float64 for formats beyond its range, of the tensor's shape and on the codes'
    device. A block whose scale is NaN is NaN.
    """
    if not isinstance(packed, Packed):
        raise BadInput(f"what pack returns is needed, not {type(packed).__name__}")
    fmt = packed.format
    if isinstance(fmt, BlockFormat):
        return _unpack_blocks(packed, fmt)
    codes = unpack_bits(packed.codes, fmt.bits, math.prod(packed.shape))
    return decode(codes, fmt, packed.scale).reshape(packed.shape)


def pack_bits(codes: Tensor, width: int) -> Tensor:
    """Return integer codes of ``width`` bits, 1 to 8, as a stream of bits: uint8, one dimension.

    >>> pack_bits(torch.tensor([1, 2, 15]), 4).tolist()
    [33, 15]
    """
    codes = codes.flatten()
    if width == 8:
        return codes.to(torch.uint8)
    # As many codes as come out on a whole byte make a word.
    together = 8 // math.gcd(width, 8)
    count = -(-codes.numel() * width // 8)
    padded = torch.nn.functional.pad(codes, (0, -codes.numel() % together))
    word = torch.zeros(padded.numel() // together, dtype=torch.int64, device=codes.device)
    for i in range(together):
        word |= padded[i::together].to(torch.int64) << (width * i)
    octets = [(word >> (8 * i) & 255).to(torch.uint8) for i in range(width * together // 8)]
    return torch.stack(octets, 1).flatten()[:count]


def unpack_bits(stream: Tensor, width: int, count: int) -> Tensor:
    """Return the first ``count`` codes of ``width`` bits of a stream of bits: uint8.

    Raises `BadInput` unless the stream has the length that these take.

    >>> unpack_bits(torch.tensor([33, 15], dtype=torch.uint8), 4, 3).tolist()
    [1, 2, 15]
    """
    wanted = -(-count * width // 8)
    if stream.numel() != wanted:
        raise BadInput(f"{count} codes of {width} bits are {wanted} bytes, not {stream.numel()}")
    if width == 8:
        return stream
    together = 8 // math.gcd(width, 8)
    size = width * together // 8
    padded = torch.nn.functional.pad(stream, (0, -stream.numel() % size))
    word = torch.zeros(padded.numel() // size, dtype=torch.int64, device=stream.device)
    for i in range(size):
        word |= padded[i::size].to(torch.int64) << (8 * i)
    mask = (1 << width) - 1
    codes = [(word >> (width * i) & mask).to(torch.uint8) for i in range(together)]
    return torch.stack(codes, 1).flatten()[:count]


def _check_width(element: Format, fmt: AnyFormat) -> None:
    if element.bits > 8:
        raise BadInput(f"format {fmt.name}: a code has {element.bits} bits; 8 at most are packed")


def _check_blocks(x: Tensor, fmt: BlockFormat, scale: object, axis: int | None) -> int:
    _check_width(fmt.element, fmt)
    if fmt.scale_format is not None:
        _check_width(fmt.scale_format, fmt)
    elif fmt.rule not in POWER_RULES:
        raise BadInput(
            f"format {fmt.name}: scales by the rule {fmt.rule} have no codes; those of "
            f"{', '.join(POWER_RULES)} and two-level have"
        )
    if scale is not None:
        raise BadInput(f"format {fmt.name}: its blocks have scales of their own, and no other")
    axis = check_axis(x, axis)
    for a in (-2, -1) if fmt.is_square else (axis,):
        check_axis(x, a)
        if x.shape[a] % fmt.block:
            raise BadInput(
                f"format {fmt.name}: axis {a} of a tensor of shape {list(x.shape)} has length "
                f"{x.shape[a]}, which blocks of {fmt.block} do not divide: pad it first"
            )
    return axis


def _one_scale(scale: Scale, x: Tensor, fmt: Format) -> Tensor | None:
    """The scale as `unpack` has it, so that codes are those of the same number."""
    if isinstance(scale, Tensor):
        check_floating(scale, "scale")
        if scale.numel() != 1:
            raise BadInput(f"a packed tensor has one scale, not {list(scale.shape)}")
        scale = scale.reshape(())
    return scale_pair(scale, torch.empty((), dtype=torch.float32, device=x.device), fmt)[0]


def _pack_blocks(
    x: Tensor, fmt: BlockFormat, axis: int, rule: Rule, key: int | Tensor | None
) -> Packed:
    found = round_blocks(x, fmt, rule, axis=axis, key=key)
    shape, values = tuple(x.shape), found.values.double()
    s = spread(found.scales.double(), shape, fmt, axis)
    # Exact in float64. Under a scale of 0 the values are zeros, with signs; under NaN there is
    # nothing to keep.
    q = torch.where(s > 0, values / s, values)
    dtype = compute_dtype(torch.float32, fmt.element)
    q = torch.where(torch.isnan(s), 0.0, q).to(dtype)
    at = None if fmt.is_square else axis % x.dim()
    codes = encode(q if at is None else q.movedim(at, -1), fmt.element)
    scale = None if found.scale is None else found.scale.to(dtype)
    packed = pack_bits(codes, fmt.element.bits)
    return Packed(fmt, shape, at, packed, _encode_scales(found.scales, fmt), scale)


def _unpack_blocks(packed: Packed, fmt: BlockFormat) -> Tensor:
    assert packed.scales is not None
    shape = packed.shape
    at = len(shape) - 1 if packed.axis is None else packed.axis
    codes = unpack_bits(packed.codes, fmt.element.bits, math.prod(shape))
    q = decode(codes, fmt.element).reshape(*shape[:at], *shape[at + 1 :], shape[at])
    values = q.movedim(-1, at) * spread(_decode_scales(packed.scales, fmt), shape, fmt, at)
    return values if packed.scale is None else values * packed.scale


def _encode_scales(scales: Tensor, fmt: BlockFormat) -> Tensor:
    if fmt.scale_format is not None:
        return encode(scales, fmt.scale_format)
    # The exponent bits of float32 are E8M0's code: 0 for 2^-127, which is subnormal, 255 for NaN.
    return (scales.to(torch.float32).view(torch.int32) >> 23 & 255).to(torch.uint8)


def _decode_scales(codes: Tensor, fmt: BlockFormat) -> Tensor:
    if fmt.scale_format is not None:
        return decode(codes, fmt.scale_format)
    code = codes.to(torch.int32)
    bits = torch.where(code == 0, 1 << 22, code << 23)
    return torch.where(code == E8M0_NAN, torch.nan, bits.view(torch.float32))
