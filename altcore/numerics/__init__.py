"""Formats on tensors: rounding to a grid, scales, positions on the grid, and the kernels.

Everything here works on torch tensors, and what it rounds is exact: each result is that of
`altcore.formats.round_scalar`, on every device, in the torch path as in the compiled one.

Uses formats.
"""

from altcore.numerics.blocks import Blocks, fake_blocks, round_blocks, spread
from altcore.numerics.constants import outside_modes
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
from altcore.numerics.grids import COUNTS, Given, fake_round, round_to_grid
from altcore.numerics.hadamard import transform
from altcore.numerics.outputs import scale_output
from altcore.numerics.packing import pack, unpack
from altcore.numerics.plan import compute_dtype
from altcore.numerics.positions import interval_width, nearest_error, position
from altcore.numerics.scaling import amax, quantile, root_mean_square, round_scaled, scale_of
from altcore.numerics.tallies import count_small, inner_products, moments

__all__ = [
    "COUNTS",
    "Blocks",
    "Given",
    "amax",
    "compute_dtype",
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
    "moments",
    "nearest_error",
    "neighbours",
    "outside_modes",
    "pack",
    "position",
    "quantile",
    "quantize",
    "root_mean_square",
    "round_blocks",
    "round_scaled",
    "round_to_grid",
    "scale_of",
    "scale_output",
    "spread",
    "stiffness",
    "transform",
    "ulp_distance",
    "unpack",
]
