"""Formats that are a few values.

TERNARY: -1, 0, 1. BINARY: -1, 1; zero becomes 1. FP4-BNB: the four-bit type that bitsandbytes
calls FP4, which is not E2M1: sign and magnitude with 0, 1/192, 1/6, 1/4, 1/3, 1/2, 2/3 and 1 (in
float32), in that library's code order.
"""

from __future__ import annotations

from altcore.formats import code_format, table_format

TERNARY = table_format("TERNARY", (-1, 0, 1))
BINARY = table_format("BINARY", (-1, 1))

_THIRD = 0.3333333432674408  # in float32, as are its halves and its double
_FP4 = (0.0, _THIRD / 64, 2 * _THIRD, 1.0, _THIRD, 0.5, _THIRD / 2, 0.25)
FP4_BNB = code_format("FP4-BNB", (*_FP4, *(-v for v in _FP4)))
