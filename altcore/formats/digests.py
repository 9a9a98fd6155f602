"""What plain data and number formats are known by: digests of their contents. No torch here."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from typing import Any

from altcore.formats.blocks import AnyFormat, BlockFormat
from altcore.formats.floats import FloatFormat


def digest(plain: Any) -> str:
    """Return the SHA-256 of plain data, in hexadecimal; the order of a mapping's keys is nothing.

    >>> digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    True
    """
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def format_digest(fmt: AnyFormat) -> str:
    """Return the digest of a format's values and rounding rules, in hexadecimal.

    Formats of one digest hold the same values in the same codes and round alike, whatever their
    names. Formats that are given in different ways (`float_format`, a table) differ in it.
    """
    return digest(_contents(fmt))


def _contents(fmt: AnyFormat) -> list[Any]:
    if isinstance(fmt, BlockFormat):
        scale = fmt.scale_format
        known = [format_digest(fmt.element), None if scale is None else format_digest(scale)]
        return ["block", fmt.block, fmt.rule, fmt.is_square, *known]
    # A class of one's own may derive anything else from these.
    if type(fmt) is FloatFormat:
        widths = [fmt.exponent_bits, fmt.mantissa_bits, fmt.bias]
        return ["float", *widths, fmt.specials, fmt.subnormals]
    ends = [str(x) for x in (*fmt.limits, *fmt.beyond)]
    return [
        "codes",
        [value.hex() for value in fmt.code_values],
        list(fmt.even),
        fmt.ties,
        [str(b) for b in fmt.boundaries],
        ends,
    ]
