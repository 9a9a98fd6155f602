"""altcore's first-party formats, by family.

`floats`: any ExMy by its bare name, the IEEE, FN and FNUZ variants of it, E8M0, FP16, BF16 and
TF32. `ieee_p3109`: the formats of the IEEE P3109 interim report. `fixed`: integers and fixed point
in two's complement. `posits`. `logarithmic`: powers of two with a fraction in the exponent, and
formats without a mantissa rounded by their logarithm. `tables`: a few values. `blocks`: OCP's
microscaling formats and NVFP4, whose elements share scales. Each module says exactly what its names
mean.
"""

from __future__ import annotations

from altcore_formats.blocks import (
    MXFP4,
    MXFP6_E2M3,
    MXFP6_E3M2,
    MXFP8_E4M3,
    MXFP8_E5M2,
    MXINT8,
    NVFP4,
    NVFP4_SQUARE,
    mx,
)
from altcore_formats.fixed import INT4, INT8, fixed_point, integer
from altcore_formats.floats import (
    BF16,
    E0M7,
    E1M6,
    E2M1,
    E2M3,
    E2M5,
    E3M2,
    E3M4,
    E3M4IEEE,
    E4M3,
    E4M3B11FNUZ,
    E4M3FNUZ,
    E4M3IEEE,
    E5M2,
    E5M2FNUZ,
    E6M1,
    E7M0,
    E8M0,
    FP16,
    TF32,
    exmy,
    exmy_variant,
)
from altcore_formats.ieee_p3109 import p3109
from altcore_formats.logarithmic import logarithmic, power_of_two
from altcore_formats.posits import posit
from altcore_formats.tables import BINARY, FP4_BNB, NF4, TERNARY

__all__ = [
    "BF16",
    "BINARY",
    "E0M7",
    "E1M6",
    "E2M1",
    "E2M3",
    "E2M5",
    "E3M2",
    "E3M4",
    "E3M4IEEE",
    "E4M3",
    "E4M3B11FNUZ",
    "E4M3FNUZ",
    "E4M3IEEE",
    "E5M2",
    "E5M2FNUZ",
    "E6M1",
    "E7M0",
    "E8M0",
    "FP4_BNB",
    "FP16",
    "INT4",
    "INT8",
    "MXFP4",
    "MXFP6_E2M3",
    "MXFP6_E3M2",
    "MXFP8_E4M3",
    "MXFP8_E5M2",
    "MXINT8",
    "NF4",
    "NVFP4",
    "NVFP4_SQUARE",
    "TERNARY",
    "TF32",
    "exmy",
    "exmy_variant",
    "fixed_point",
    "integer",
    "logarithmic",
    "mx",
    "p3109",
    "posit",
    "power_of_two",
]
