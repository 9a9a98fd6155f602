"""Formats on tensors: rounding to a grid, scales, ordinals on the grid, and the kernels.

Everything here works on torch tensors, and what it rounds is exact: each result is that of
`altcore.formats.round_scalar` (in float32 with ``single``), on every device, in torch operations as
in compiled code. A format's values become constants in `rounding_constants`; `rounding` and
`blocks` round with them, by the backend that `backends` chooses.

Uses formats.
"""

from altcore.numerics.block_scales import RoundedBlocks, spread
from altcore.numerics.blocks import fake_blocks, round_blocks
from altcore.numerics.epilogue import scale_output
from altcore.numerics.flips import follow_flips
from altcore.numerics.functional import (
    decode,
    encode,
    fake_quantize,
    grid_error,
    neighbours,
    quantize,
    stiffness,
    ulp_distance,
)
from altcore.numerics.hadamard import transform
from altcore.numerics.magnitudes import amax, quantile, root_mean_square
from altcore.numerics.norms import norm_of, norms_of
from altcore.numerics.ordinals import interval_width, nearest_error, ordinal
from altcore.numerics.packing import Packed, pack, pack_bits, unpack, unpack_bits
from altcore.numerics.reductions import count_magnitudes, count_small, inner_products, moments
from altcore.numerics.resolve import rule_by_amax
from altcore.numerics.rounding import fake_round, round_scaled, round_to_grid
from altcore.numerics.rounding_constants import compute_dtype
from altcore.numerics.rules import COUNTS, ERRORS, NEAREST, UNMETERED, Meters, Rule
from altcore.numerics.scaling import scale_of
from altcore.numerics.straight_through import is_clipped
from altcore.numerics.tracing import outside_modes

__all__ = [
    "COUNTS",
    "ERRORS",
    "NEAREST",
    "UNMETERED",
    "Meters",
    "Packed",
    "RoundedBlocks",
    "Rule",
    "amax",
    "compute_dtype",
    "count_magnitudes",
    "count_small",
    "decode",
    "encode",
    "fake_blocks",
    "fake_quantize",
    "fake_round",
    "follow_flips",
    "grid_error",
    "inner_products",
    "interval_width",
    "is_clipped",
    "moments",
    "nearest_error",
    "neighbours",
    "norm_of",
    "norms_of",
    "ordinal",
    "outside_modes",
    "pack",
    "pack_bits",
    "quantile",
    "quantize",
    "root_mean_square",
    "round_blocks",
    "round_scaled",
    "round_to_grid",
    "rule_by_amax",
    "scale_of",
    "scale_output",
    "spread",
    "stiffness",
    "transform",
    "ulp_distance",
    "unpack",
    "unpack_bits",
]
