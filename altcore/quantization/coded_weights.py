"""The weights of a quantized model as codes and scales: what an exported file holds."""

from __future__ import annotations

import math

from attrs import frozen
from torch import Tensor, nn

from altcore.errors import BadInput
from altcore.formats import AnyFormat, BlockFormat, Format
from altcore.numerics import (
    Packed,
    decode,
    encode,
    pack,
    pack_bits,
    round_to_grid,
    unpack,
    unpack_bits,
)
from altcore.quantization.layer import QuantizedLayer
from altcore.quantization.quantization import Quantization
from altcore.quantization.quantizer import Quantizer
from altcore.quantization.rules import rule_of
from altcore.quantization.stored import StoredWeight

Scale = Tensor | None
LAYOUT_FREE = ("none", "tensor", "delayed", "rms")
"""Scalings with one scale for the whole tensor, whichever way a product turns it."""
LAST_AXIS = (nn.Linear, nn.Embedding)
"""Layers whose products sum over the last axis of the weight, as `pack` lays blocks."""


@frozen(eq=False)
class CodedWeight:
    """A weight in a format's codes.

    ``codes``: uint8, one dimension, a stream of bits as `altcore.pack` lays it out. ``scales``: of
    a block format, uint8, one code a block. ``scale``: by which everything is multiplied; it
    broadcasts to ``shape``, or is None.
    """

    format: AnyFormat
    shape: tuple[int, ...]
    codes: Tensor
    scales: Scale
    scale: Scale

    def values(self) -> Tensor:
        """Return the numbers that the codes mean: float32, of ``shape``."""
        if isinstance(self.format, BlockFormat):
            axis = None if self.format.is_square else len(self.shape) - 1
            whole = Packed(self.format, self.shape, axis, self.codes, self.scales, self.scale)
            return unpack(whole)
        codes = unpack_bits(self.codes, self.format.bits, math.prod(self.shape))
        return decode(codes.reshape(self.shape), self.format, self.scale)


def weight_codes(q: Quantization) -> tuple[dict[str, CodedWeight], dict[str, str]]:
    """Return the weights that codes can hold, and why they cannot hold the others, by full name.

    Each is as the next forward of its layer sees it: a stored weight is on its grid, also if it was
    edited since, and a master weight is rounded, to nearest if that rounds stochastically. Whether
    a layer multiplies by another tensor, computed from its weight, is known once it has run. Only
    weights that the recipe quantizes are in either.
    """
    coded: dict[str, CodedWeight] = {}
    others: dict[str, str] = {}
    for name, (slot, source) in q.weights.sources.items():
        try:
            if isinstance(source, StoredWeight):
                scale, on_grid = source.as_seen(slot.parameter)
                fmt = source.cast.element
                coded[name] = _in_codes(round_to_grid(on_grid, fmt, r=1 / scale), fmt, scale)
            else:
                coded[name] = _as_seen(slot.parameter.detach(), *source)
        except BadInput as error:
            others[name] = str(error)
    return coded, others


def _as_seen(weight: Tensor, layer: QuantizedLayer, quantizer: Quantizer) -> CodedWeight:
    cast, fmt = quantizer.cast, quantizer.cast.element
    if cast.hadamard:
        raise BadInput("a Hadamard transform comes before its rounding")
    seen = layer.seen_as.get(quantizer.site.parameter or "weight", "itself")
    if seen is None:
        raise BadInput("its layer multiplies by a part of it, or by a tensor computed from it")
    is_laid_out = cast.blocks is not None or cast.scaling.kind not in LAYOUT_FREE
    if is_laid_out and not (isinstance(layer.module, LAST_AXIS) and seen == "itself"):
        kind = type(layer.module).__name__
        raise BadInput(f"{kind} lays blocks and channels along another shape")
    rounding = "nearest-even" if cast.rounding == "stochastic" else cast.rounding
    if cast.blocks is not None:
        made = pack(weight.float(), cast.blocks, rounding=rounding)
        return CodedWeight(cast.blocks, tuple(weight.shape), made.codes, made.scales, made.scale)
    scale, r = quantizer.scales(weight, False, (-1,))
    rule = rule_of(cast)._replace(rounding=rounding)
    return _in_codes(round_to_grid(weight, fmt, rule, r=r), fmt, scale, rule.overflow)


def _in_codes(q: Tensor, fmt: Format, scale: Scale, overflow: str = "saturate") -> CodedWeight:
    """Encode grid values; an infinity, which overflowed, follows its rule again."""
    if fmt.bits > 8:
        raise BadInput(f"a code of {fmt.name} has {fmt.bits} bits; 8 at most are packed")
    codes = encode(q, fmt, overflow=overflow)
    return CodedWeight(fmt, tuple(q.shape), pack_bits(codes.flatten(), fmt.bits), None, scale)
