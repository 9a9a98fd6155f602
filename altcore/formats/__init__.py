"""Number formats as plain data: codes, values and rules; formats of blocks; names and families.

Uses the registry and nothing else of altcore; needs no torch.
"""

from altcore.formats.blocks import AnyFormat, BlockFormat, ScaleRule
from altcore.formats.digests import digest, format_digest
from altcore.formats.lookup import get_format, get_scalar_format
from altcore.formats.reference import OVERFLOWS, ROUNDINGS, log_boundary, no_code, round_scalar
from altcore.formats.scalar import (
    MAX_BITS,
    FloatFormat,
    Format,
    Specials,
    TableFormat,
    Ties,
    code_format,
    float_format,
    table_format,
)

__all__ = [
    "MAX_BITS",
    "OVERFLOWS",
    "ROUNDINGS",
    "AnyFormat",
    "BlockFormat",
    "FloatFormat",
    "Format",
    "ScaleRule",
    "Specials",
    "TableFormat",
    "Ties",
    "code_format",
    "digest",
    "float_format",
    "format_digest",
    "get_format",
    "get_scalar_format",
    "log_boundary",
    "no_code",
    "round_scalar",
    "table_format",
]
