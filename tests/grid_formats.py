"""Formats of every kind that the tests of numerics round to, and numbers for them."""

import torch

from altcore.formats import float_format, table_format

E0M7 = float_format("E0M7", 0, 7)
E1M6 = float_format("E1M6", 1, 6)
E3M4 = float_format("E3M4", 3, 4)
E4M3 = float_format("E4M3", 4, 3, specials="fn")
E5M2 = float_format("E5M2", 5, 2, specials="ieee")
E7M0 = float_format("E7M0", 7, 0)
BF16 = float_format("BF16", 8, 7, specials="ieee")
FP16 = float_format("FP16", 5, 10, specials="ieee")
WIDE = float_format("E9M0", 9, 0)
FNUZ = float_format("E4M3FNUZ", 4, 3, bias=8, specials="fnuz")
FLAT = float_format("flat", 3, 2, subnormals=False)
NF = table_format("nf", [-1.0, -0.52, -0.2844, 0.0, 0.0796, 0.2461, 0.44, 0.723, 1.0])
ODD = table_format("odd", [-3, -1, 1, 3])
CLOSE = table_format("close", [-1, 0, 1, 1 + 2**-23, 1 + 2**-22, 2])
TERNARY = table_format("ternary", [-1, 0, 1])
NATURAL = table_format("natural", [0, 1, 2])
POSITIVE = table_format("positive", [2.0**-9, 0.5, 1, 3])
ALL = [E0M7, E1M6, E3M4, E4M3, E5M2, E7M0, FLAT, NF, ODD, CLOSE, POSITIVE]
"""Of every kind, none beyond float32's range."""
FACE = [E0M7, E3M4, E4M3, E5M2, FNUZ, FP16, WIDE, TERNARY]
"""What the public functions are tried with."""


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))
