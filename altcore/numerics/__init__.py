"""Formats on tensors: rounding to a grid, scales, positions on the grid, and the kernels.

Everything here works on torch tensors, and what it rounds is exact: each result is that of
`altcore.reference.round_scalar`, on every device, in the torch path as in the compiled one.
`altcore.numerics.functional` is the public face; the functions re-exported here are what the
layers above build on. They know nothing of autograd.
"""

from altcore.numerics.flips import follow_flips
from altcore.numerics.grids import COUNTS, fake_round, round_to_grid
from altcore.numerics.plan import compute_dtype
from altcore.numerics.positions import grid_error, position, stiffness
from altcore.numerics.scaling import amax, quantile, root_mean_square, round_scaled, scale_of
from altcore.numerics.tallies import count_small, inner_products, moments

__all__ = [
    "COUNTS",
    "amax",
    "compute_dtype",
    "count_small",
    "fake_round",
    "follow_flips",
    "grid_error",
    "inner_products",
    "moments",
    "position",
    "quantile",
    "root_mean_square",
    "round_scaled",
    "round_to_grid",
    "scale_of",
    "stiffness",
]
