"""Independent oracles of the number formats, and where altcore's definition is another than theirs.

ml_dtypes is fed float32, since it rounds float64 by way of that; gfloat computes in float64. Block
formats are put together from their elements by the rules of the specifications. What an oracle says
is never left out of a comparison: `by_definition` replaces it where altcore defines something else,
and counts how often.
"""

from __future__ import annotations

import functools
import math

import gfloat
import ml_dtypes
import numpy as np
import torch
from format_checks import differing, reference
from gfloat import formats as oracle
from torch import Tensor

from altcore.formats import BlockFormat, Format

FAMILIES = {
    "E*M*": ["E4M2", "E1M2"],
    "E*M*IEEE": ["E2M3IEEE", "E4M3B10IEEE"],
    "E*M*FN": ["E3M4FN", "E5M2FN"],
    "E*M*FNUZ": ["E3M4FNUZ", "E4M3B4FNUZ"],
    "binary*p*": ["binary8p3sf", "binary8p4ue", "binary6p3uf", "binary3p2se"],
    "E*M0-*": ["E7M0-ties-up", "E7M0-ties-down", "E7M0-by-log", "E8M0-ties-up", "E8M0-by-log"],
    "INT*": ["INT2", "INT7"],
    "Q*_*": ["Q3_4", "Q0_7", "Q1_6"],
    "posit*_*": ["posit8_0", "posit8_1", "posit8_2", "posit6_5"],
    "LOG*_*": ["LOG4_3-by-value", "LOG4_3-by-log", "LOG9_0-by-value"],
    "MX*": ["MXFP4-rceil", "MXFP8-E4M3-ceil", "MXFP6-E2M3-even", "MXINT8-rceil"],
}
"""Of each family of formats, those that are tested."""

ML_DTYPES = {
    "E2M1": ml_dtypes.float4_e2m1fn,
    "E2M3": ml_dtypes.float6_e2m3fn,
    "E3M2": ml_dtypes.float6_e3m2fn,
    "E4M3": ml_dtypes.float8_e4m3fn,
    "E4M3FN": ml_dtypes.float8_e4m3fn,
    "E5M2": ml_dtypes.float8_e5m2,
    "E5M2IEEE": ml_dtypes.float8_e5m2,
    "E3M4IEEE": ml_dtypes.float8_e3m4,
    "E4M3IEEE": ml_dtypes.float8_e4m3,
    "E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "E4M3B11FNUZ": ml_dtypes.float8_e4m3b11fnuz,
    "E8M0-ties-up": ml_dtypes.float8_e8m0fnu,
    "BF16": ml_dtypes.bfloat16,
    "FP16": np.float16,
}

GFLOAT = {f"binary8p{p}se": oracle.format_info_p3109(8, p) for p in range(1, 8)} | {
    "E2M1": oracle.format_info_ocp_e2m1,
    "E2M3": oracle.format_info_ocp_e2m3,
    "E3M2": oracle.format_info_ocp_e3m2,
    "E4M3": oracle.format_info_ocp_e4m3,
    "E5M2": oracle.format_info_ocp_e5m2,
    "E8M0": oracle.format_info_ocp_e8m0,
    "Q1_6": oracle.format_info_ocp_int8,
    "FP16": oracle.format_info_binary16,
    "BF16": oracle.format_info_bfloat16,
}
GFLOAT_ROUNDINGS = {
    "nearest-even": gfloat.RoundMode.TiesToEven,
    "nearest-away": gfloat.RoundMode.TiesToAway,
    "to-zero": gfloat.RoundMode.TowardZero,
    "up": gfloat.RoundMode.TowardPositive,
    "down": gfloat.RoundMode.TowardNegative,
}
GFLOAT_ELEMENTS = {
    "E4M3": oracle.format_info_ocp_e4m3,
    "E5M2": oracle.format_info_ocp_e5m2,
    "E2M3": oracle.format_info_ocp_e2m3,
    "E3M2": oracle.format_info_ocp_e3m2,
    "E2M1": oracle.format_info_ocp_e2m1,
}

SMALLEST_NORMAL = 2.0**-126  # of float32


def overflow_of(fmt: Format) -> str:
    """The overflow rule of hardware and oracles: infinity, else NaN, else the largest value."""
    return "inf" if fmt.inf_codes else "nan" if fmt.nan_codes else "saturate"


def ml_rounded(x: Tensor, dtype: type) -> Tensor:
    """``x`` through ml_dtypes or numpy, by way of float32."""
    with np.errstate(all="ignore"):
        return torch.from_numpy(x.float().numpy().astype(dtype).astype(np.float32))


def ml_codes(fmt: Format, dtype: type) -> list[float]:
    """The value of each code in ml_dtypes or numpy."""
    held = np.dtype(dtype)
    codes = np.arange(1 << fmt.bits).astype(np.uint8 if held.itemsize == 1 else np.uint16)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return codes.view(held).astype(np.float64).tolist()


def gfloat_rounded(
    x: Tensor, info: gfloat.FormatInfo, rounding: str = "nearest-even", *, saturate: bool
) -> Tensor:
    """``x`` through gfloat, as float32."""
    mode = GFLOAT_ROUNDINGS[rounding]
    with np.errstate(all="ignore"):
        rounded = gfloat.round_ndarray(info, x.double().numpy(), mode, sat=saturate)
        return torch.from_numpy(rounded.astype(np.float32))


def gfloat_codes(fmt: Format, info: gfloat.FormatInfo) -> list[float]:
    """The value of each code in gfloat."""
    return [gfloat.decode_float(info, code).fval for code in range(1 << fmt.bits)]


# ------------------------------------------------------------------- where definitions differ


@functools.cache
def has_negative_zero(fmt: Format) -> bool:
    """Whether a code of ``fmt`` is -0."""
    return any(v == 0 and math.copysign(1, v) < 0 for v in fmt.code_values)


def by_definition(
    x: Tensor,
    theirs: Tensor,
    fmt: Format,
    rounding: str,
    overflow: str,
    least: float,
) -> tuple[Tensor, dict[str, int]]:
    """What altcore defines in the place of an oracle's results, and how many that changes.

    - ``NaN``: NaN stays NaN in every format; oracles make zero or the largest value of it where
      there is no code.
    - ``-0``: a zero has the sign of what was rounded, in formats without a code for -0 too.
    - ``unsigned``: for E8M0 what is not positive overflows, to its smallest value or to NaN; and
      positive numbers below ``least``, where the oracle does not round to nearest, are the
      scalar reference's.
    """
    wanted = theirs.clone()
    counts = {}

    def replace(rule: str, where: Tensor, values: Tensor) -> None:
        replaced = torch.where(where, values, wanted)
        counts[rule] = int(differing(replaced, wanted).sum())
        wanted.copy_(replaced)

    replace("NaN", torch.isnan(x), torch.full_like(wanted, torch.nan))
    if fmt.values[0] > 0:
        lowest = torch.nan if overflow == "nan" else fmt.values[0]
        below = torch.full_like(wanted, lowest)
        small = (x > 0) & (x < least)
        below[small] = reference(x[small], fmt, rounding, overflow)
        replace("unsigned", (x <= 0) | small, below)
    if not has_negative_zero(fmt):
        replace("−0", wanted == 0, torch.copysign(torch.zeros_like(wanted), x.float()))
    return wanted, counts


# ------------------------------------------------------------------------------ block formats


def mx_exponent(amax: float, fmt: BlockFormat) -> int:
    """The exponent of a block's scale by the rule of the MX format ``fmt``."""
    if amax == 0:
        return -127
    largest, top = fmt.element.max, math.frexp(fmt.element.max)[1] - 1
    floor = math.frexp(amax)[1] - 1
    mantissa = amax / 2.0**floor
    if fmt.rule == "floor":
        k = floor - top
    elif fmt.rule == "ceil":
        k = floor + (mantissa != 1) - top
    elif fmt.rule == "rceil":
        k = next(k for k in range(floor - top - 2, floor - top + 3) if amax <= largest * 2.0**k)
    else:
        precision = fmt.element.precision or fmt.element.bits
        rounded = round(mantissa * 2 ** (precision - 1))  # Python rounds to even
        k = floor + (rounded == 2**precision) - top
    return min(max(k, -127), 127)


def mx_scale(block: np.ndarray, amax: float, fmt: BlockFormat) -> float:
    """The scale of a block: gfloat's by OCP's rule, the definition's by the others."""
    if fmt.rule == "floor":
        return float(gfloat.compute_scale_amax(math.frexp(fmt.element.max)[1] - 1, block))
    return 2.0 ** mx_exponent(amax, fmt)


def mx_rounded(x: Tensor, fmt: BlockFormat) -> tuple[Tensor, dict[str, int]]:
    """Rows of ``x``, each a block, under an MX format: elements by gfloat. And what
    was changed in gfloat's.

    A block that is not finite is NaN. gfloat's MXINT8 has an element more, -2, which the format
    here leaves out.
    """
    blocks = x.double().numpy()
    finite = np.isfinite(blocks).all(1)
    scales = np.full((len(blocks), 1), np.nan)
    for i in np.flatnonzero(finite):
        scales[i] = mx_scale(blocks[i], float(np.abs(blocks[i]).max()), fmt)
    info = GFLOAT_ELEMENTS.get(fmt.element.name, oracle.format_info_ocp_int8)
    with np.errstate(all="ignore"):
        theirs = gfloat.round_ndarray(info, blocks / scales, sat=True)
    elements = np.where(theirs < -fmt.element.max, -fmt.element.max, theirs)
    elements = np.where(elements == 0, np.copysign(0.0, blocks), elements)
    counts = {
        "MXINT8": int((elements != theirs)[finite].sum()),
        "−0": int((np.signbit(elements) != np.signbit(theirs))[finite].sum()),
    }
    with np.errstate(over="ignore"):
        return torch.from_numpy((elements * scales).astype(np.float32)), counts


def nvfp4_rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of ``x``, each a block of one tensor, in NVFP4; and the scale of the tensor.

    By the definition, every operation in float32: g = amax / (448 · 6); a block's scale is E4M3 of
    (amax / 6) / g, at most 448; an element is E2M1 of x · (1 / (scale · g)), at most 6. E4M3 and
    E2M1 are ml_dtypes'.
    """
    blocks = x.float().numpy()
    single, one = np.float32, np.float32(1)
    with np.errstate(all="ignore"):
        largest = np.abs(blocks).max(1, keepdims=True)
        g = largest.max() / single(448 * 6)
        if not np.isfinite(largest).all():
            return torch.full_like(x, torch.nan, dtype=torch.float32), torch.tensor(g)
        wanted = np.minimum(largest / single(6) / g, single(448))
        scales = wanted.astype(ml_dtypes.float8_e4m3fn).astype(single)
        scales = np.where((g > 0) & (largest > 0), scales, single(0))
        total = scales * g
        inverse = np.minimum(one / total, np.finfo(single).max)
        y = blocks * np.where(total > 0, inverse, single(0))
        y = np.clip(y, single(-6), single(6)).astype(ml_dtypes.float4_e2m1fn).astype(single)
        return torch.from_numpy(y * scales), torch.tensor(g)
