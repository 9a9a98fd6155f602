"""Formats that are a few values.

TERNARY: -1, 0, 1. BINARY: -1, 1; zero becomes 1. FP4-BNB: the four-bit type that bitsandbytes
calls FP4, which is not E2M1: sign and magnitude with 0, 1/192, 1/6, 1/4, 1/3, 1/2, 2/3 and 1 (in
float32), in that library's code order. NF4: NormalFloat4 of QLoRA (Dettmers et al., arXiv
2305.14314, Appendix E), sixteen quantiles of a normal distribution scaled into [-1, 1]; there with
one scale for each block of 64, which is a recipe's to say: {format: NF4, scaling: {kind: block,
block: 64}}.
"""

from __future__ import annotations

from altcore.plugin import code_format, table_format

TERNARY = table_format("TERNARY", (-1, 0, 1))
BINARY = table_format("BINARY", (-1, 1))

_THIRD = 0.3333333432674408  # in float32, as are its halves and its double
_FP4 = (0.0, _THIRD / 64, 2 * _THIRD, 1.0, _THIRD, 0.5, _THIRD / 2, 0.25)
FP4_BNB = code_format("FP4-BNB", (*_FP4, *(-v for v in _FP4)))

NF4 = table_format(
    "NF4",
    (
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ),
)
