"""In which type a product of quantized operands runs: float32, bfloat16 or native FP8.

The choice depends on the values of the operands' formats and on the hardware, never on a format's
name or on a measurement, so that a run repeats.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable

import torch

from altcore.errors import BadInput
from altcore.formats import AnyFormat, BlockFormat, FloatFormat, Format
from altcore.recipes import PRODUCT_OPERANDS, ResolvedRecipe

COMPUTES = ("auto", "float32", "bfloat16", "exact-bfloat16", "exact-float8")
"""``bfloat16`` is autocast: unquantized operands are rounded to it. With ``exact-bfloat16`` and
``exact-float8`` products run in that type where it holds both operands exactly, and in the next
wider one elsewhere. ``auto`` chooses between these and ``float32``."""


def choose_compute(compute: str, plan: ResolvedRecipe, device: torch.device) -> str:
    """Return ``compute`` itself, or the choice that ``auto`` leaves to altcore.

    ``exact-float8`` if the device has FP8 matrix units and a product's formats have their
    values; ``exact-bfloat16`` if the device multiplies bfloat16 faster than float32 and a
    product's formats are exact in it; else ``float32``. Raises `BadInput` for an unknown one.
    """
    if compute not in COMPUTES:
        raise BadInput(f"{compute!r} is none of {', '.join(COMPUTES)}", key="compute")
    if compute != "auto":
        return compute
    pairs = list(_product_formats(plan))
    if has_fast_float8(device) and any(float8_dtypes(a, b) for a, b in pairs):
        return "exact-float8"
    exact = any(is_exact_in_bfloat16(a) and is_exact_in_bfloat16(b) for a, b in pairs)
    return "exact-bfloat16" if exact and has_fast_bfloat16(device) else "float32"


def output_dtype(x: torch.Tensor, compute: str = "auto") -> torch.dtype:
    """Return the type in which a product gives its result: torch's, which autocast decides.

    Its operands are quantized as they are, whatever that would cast them to.
    """
    kind = x.device.type
    if compute == "bfloat16":
        return torch.bfloat16
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:  # which autocast leaves alone
        return torch.get_autocast_dtype(kind)
    return x.dtype


def _product_formats(plan: ResolvedRecipe) -> Iterable[tuple[AnyFormat, AnyFormat]]:
    """The formats of both operands of each product of which both are quantized."""
    for casts in plan.values():
        by_product = {
            product: [c for o in PRODUCT_OPERANDS if o.endswith(product) and (c := casts[o])]
            for product in ("fwd", "dgrad", "wgrad")
        }
        for found in by_product.values():
            if len(found) == 2:
                yield found[0].blocks or found[0].format, found[1].blocks or found[1].format


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device has bfloat16 matrix or dot-product units."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    return any(
        getattr(torch.cpu, probe, bool)()
        for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )


def has_fast_float8(device: torch.device) -> bool:
    """Whether the device has FP8 matrix units (NVIDIA from compute capability 8.9 on)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


@functools.cache
def is_exact_in_bfloat16(fmt: AnyFormat | None) -> bool:
    """Whether every value is a normal bfloat16; False for None, a tensor that is not quantized.

    A block format's values have their block's scale in them. Powers of two keep the element's
    bits. An element that they bring below 2^-126 costs a product less than 2^-126 times its other
    operand.
    """
    if fmt is None:
        return False
    if isinstance(fmt, BlockFormat):
        return _blocks_are_exact(fmt)
    if not isinstance(fmt, FloatFormat):
        return all(_is_bfloat16(v) for v in fmt.values)
    return fmt.precision <= 8 and fmt.smallest >= 2.0**-126 and fmt.max <= 2.0**127


def grid_dtype(fmt: AnyFormat, dtype: torch.dtype, compute: str) -> torch.dtype | None:
    """Return the dtype in which products take the format's values: bfloat16, or None for theirs.

    Rounded to it at once, they are not converted again for each product. ``dtype`` is that of the
    tensor: a product of float64 ones is a float64 one.
    """
    narrow = compute in ("bfloat16", "exact-bfloat16") and isinstance(fmt, Format)
    narrow = narrow and dtype != torch.float64
    return torch.bfloat16 if narrow and is_exact_in_bfloat16(fmt) else None


def _blocks_are_exact(fmt: BlockFormat) -> bool:
    if fmt.scale_format is None:
        return fmt.rule != "amax" and is_exact_in_bfloat16(fmt.element)
    if not isinstance(fmt.element, FloatFormat) or not isinstance(fmt.scale_format, FloatFormat):
        return False
    bits = fmt.element.precision + fmt.scale_format.precision
    smallest = fmt.element.smallest * fmt.scale_format.smallest
    return (
        bits <= 8 and smallest >= 2.0**-126 and fmt.element.max * fmt.scale_format.max <= 2.0**127
    )


def _is_bfloat16(value: float) -> bool:
    mantissa, exponent = math.frexp(value)
    return value == 0 or (float(mantissa * 256).is_integer() and -125 <= exponent <= 128)


@functools.cache
def float8_dtype(fmt: AnyFormat | None) -> torch.dtype | None:
    """Return torch's FP8 dtype whose finite values are the format's, if there is one."""
    if not isinstance(fmt, Format):
        return None
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        codes = torch.arange(256, dtype=torch.uint8, device="cpu").view(dtype).to(torch.float32)
        if tuple(sorted({v + 0.0 for v in codes[codes.isfinite()].tolist()})) == fmt.values:
            return dtype
    return None


def float8_dtypes(
    a: AnyFormat | None, b: AnyFormat | None
) -> tuple[torch.dtype, torch.dtype] | None:
    """Return the FP8 dtypes of a product's operands, or None if the units cannot multiply them.

    They take E4M3 by E4M3 and E4M3 by E5M2, in either order; not E5M2 by E5M2.
    """
    first, second = float8_dtype(a), float8_dtype(b)
    if first is None or second is None or torch.float8_e4m3fn not in (first, second):
        return None
    return first, second
