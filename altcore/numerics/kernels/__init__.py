"""The C code, its build, and its bindings: CPU tensors in one pass over memory.

`compiler` compiles it on first use, `cache` keeps the library, `build` loads it, and `structs`
mirrors the structs that both sides share. `tensors.reads` says whether the kernels take a tensor.
Every result is, bit for bit, that of the torch operations, sums of floats excepted.
"""

from altcore.numerics.kernels.blocks import kernel_block_rounder
from altcore.numerics.kernels.build import switched_on
from altcore.numerics.kernels.epilogue import can_scale, scale_output
from altcore.numerics.kernels.flips import can_follow, follow_flips
from altcore.numerics.kernels.magnitudes import amax
from altcore.numerics.kernels.ordinals import ordinal
from altcore.numerics.kernels.reductions import count_small, inner_products, moments
from altcore.numerics.kernels.rounding import kernel_rounder
from altcore.numerics.kernels.tensors import DTYPES, fits, reads

__all__ = [
    "DTYPES",
    "amax",
    "can_follow",
    "can_scale",
    "count_small",
    "fits",
    "follow_flips",
    "inner_products",
    "kernel_block_rounder",
    "kernel_rounder",
    "moments",
    "ordinal",
    "reads",
    "scale_output",
    "switched_on",
]
