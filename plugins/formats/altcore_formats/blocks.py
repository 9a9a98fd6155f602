"""Block formats: OCP's microscaling formats (MX) and NVFP4.

``MXFP8-E4M3``, ``MXFP8-E5M2``, ``MXFP6-E2M3``, ``MXFP6-E3M2``, ``MXFP4`` (of E2M1) and ``MXINT8``
are those of the OCP Microscaling Formats specification 1.0: 32 elements share a scale in E8M0, a
power of two. The elements of MXINT8 are ±m / 64 with m up to 127, so that they are as many below
zero as above (the specification lets -128 / 64 be left out).

By the bare name the scale is the specification's, 2**(floor(log2 amax) - emax), which clips values
above the largest element. A suffix is another rule: ``-ceil`` (the same with ceil), ``-rceil`` (the
smallest power of two that holds amax) and ``-even`` (floor, after rounding amax to the element's
mantissa). `altcore.BlockFormat` has the definitions.

``NVFP4`` (arXiv 2509.25149): 16 elements of E2M1 share a scale in E4M3, and the tensor has one
in float32. ``NVFP4-square`` shares the scales in blocks of 16 x 16, so that a weight and its
transpose are quantized alike.
"""

from __future__ import annotations

import re
from functools import cache

from altcore.plugin import BadInput, BlockFormat, ScaleRule, float_format, nearest
from altcore_formats.floats import E2M1, E2M3, E3M2, E4M3, E5M2

MXFP8_E4M3 = BlockFormat("MXFP8-E4M3", E4M3)
MXFP8_E5M2 = BlockFormat("MXFP8-E5M2", E5M2)
MXFP6_E2M3 = BlockFormat("MXFP6-E2M3", E2M3)
MXFP6_E3M2 = BlockFormat("MXFP6-E3M2", E3M2)
MXFP4 = BlockFormat("MXFP4", E2M1)
MXINT8 = BlockFormat("MXINT8", float_format("INT8-of-MX", 0, 7, bias=0))
NVFP4 = BlockFormat("NVFP4", E2M1, 16, "two-level", E4M3)
NVFP4_SQUARE = BlockFormat("NVFP4-square", E2M1, 16, "two-level", E4M3, is_square=True)

_MX = {f.name: f for f in (MXFP8_E4M3, MXFP8_E5M2, MXFP6_E2M3, MXFP6_E3M2, MXFP4, MXINT8)}
_SUFFIXES: tuple[ScaleRule, ...] = ("ceil", "rceil", "even")
_NAME = re.compile(rf"({'|'.join(_MX)})(?:-({'|'.join(_SUFFIXES)}))?")


@cache
def mx(name: str) -> BlockFormat | None:
    """Return the MX format of that name, or None for a name without MXFP or MXINT at its start.

    Raises `BadInput` for elements or a scale rule that there are not.

    >>> mx("MXFP4-rceil").rule, mx("MXFP4").rule, mx("MXFP6-E2M3").bits
    ('rceil', 'floor', 6.25)
    """
    match = _NAME.fullmatch(name)
    if match is not None:
        bare = _MX[match[1]]
        return bare if match[2] is None else BlockFormat(name, bare.element, rule=match[2])
    if not name.startswith(("MXFP", "MXINT")):
        return None
    raise _unknown(name)


def _unknown(name: str) -> BadInput:
    bare = next((bare for bare in _MX if name.startswith(f"{bare}-")), None)
    if bare is not None:
        rule = name.removeprefix(f"{bare}-")
        others = ", ".join(f"{bare}-{suffix}" for suffix in _SUFFIXES)
        return BadInput(
            f"format {name}: unknown scale rule {rule!r}",
            meant=nearest(rule, _SUFFIXES),
            hint=f"{bare} alone means OCP's, floor; the others are {others}",
        )
    half = any(bare.startswith(name) for bare in _MX)
    return BadInput(
        f"format {name}: there is no such MX format",
        meant="" if half else nearest(name, _MX),
        hint=f"they are {', '.join(_MX)}",
    )
