"""The weights of a quantized model as codes and scales: what an exported file holds."""

from __future__ import annotations

import math

from attrs import frozen
from torch import Tensor, nn

from altcore.errors import BadInput
from altcore.formats import AnyFormat, BlockFormat, Format
from altcore.numerics import Packed, decode, encode, pack, pack_bits, unpack, unpack_bits
from altcore.quantization.quantization import Quantization
from altcore.quantization.quantizer import Quantizer
from altcore.quantization.stored import StoredWeight
from altcore.recipes import Cast

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
    edited since, and a master weight is rounded, to nearest if that rounds stochastically. Only
    weights that the recipe quantizes are in either.
    """
    coded: dict[str, CodedWeight] = {}
    others: dict[str, str] = {}
    for name, (slot, source) in q.weights.sources.items():
        try:
            if isinstance(source, StoredWeight):
                scale, on_grid = source.as_seen(slot.parameter)
                coded[name] = _in_codes(on_grid, source.cast.element, scale, source.cast)
            else:
                layer, quantizer = source
                coded[name] = _as_seen(slot.parameter.detach(), layer.module, quantizer)
        except BadInput as error:
            others[name] = str(error)
    return coded, others


def _as_seen(weight: Tensor, module: nn.Module, quantizer: Quantizer) -> CodedWeight:
    cast = quantizer.cast
    if cast.hadamard:
        raise BadInput("a Hadamard transform comes before its rounding")
    is_laid_out = cast.blocks is not None or cast.scaling.kind not in LAYOUT_FREE
    if is_laid_out and not isinstance(module, LAST_AXIS):
        raise BadInput(f"{type(module).__name__} lays blocks and channels along another shape")
    if cast.blocks is not None:
        made = pack(weight.float(), cast.blocks, rounding=_deterministic(cast))
        return CodedWeight(cast.blocks, tuple(weight.shape), made.codes, made.scales, made.scale)
    scale, _ = quantizer.scales(weight.float(), False, (-1,))
    return _in_codes(weight, cast.element, scale, cast)


def _in_codes(weight: Tensor, fmt: Format, scale: Scale, cast: Cast) -> CodedWeight:
    if fmt.bits > 8:
        raise BadInput(f"a code of {fmt.name} has {fmt.bits} bits; 8 at most are packed")
    codes = encode(
        weight.float(), fmt, scale, rounding=_deterministic(cast), overflow=cast.overflow
    )
    return CodedWeight(fmt, tuple(weight.shape), pack_bits(codes.flatten(), fmt.bits), None, scale)


def _deterministic(cast: Cast) -> str:
    return "nearest-even" if cast.rounding == "stochastic" else cast.rounding
