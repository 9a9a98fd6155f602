"""Number formats as plain data: codes, values and rules; formats of blocks; names and families.

Uses the registry and YAML files and nothing else of altcore; needs no torch.
"""

from altcore.formats.base import MAX_BITS, Format, Ties, to_single
from altcore.formats.blocks import AnyFormat, BlockFormat, ScaleRule
from altcore.formats.digests import digest, format_digest
from altcore.formats.floats import FloatFormat, Specials, float_format
from altcore.formats.lookup import origins_recorded
from altcore.formats.reading import from_plain, get_format, get_scalar_format, is_plain
from altcore.formats.records import (
    ChangedFormat,
    changed_digests,
    check_digests,
    check_names,
    digests_of,
    origins_of,
    saved,
)
from altcore.formats.reference import (
    OVERFLOWS,
    ROUNDINGS,
    full_rounding,
    has_code,
    is_even,
    log_boundary,
    no_code,
    round_scalar,
)
from altcore.formats.stochastic import ALL_BITS, FEW_BITS, Stochastic
from altcore.formats.tables import TableFormat, code_format, table_format

__all__ = [
    "ALL_BITS",
    "FEW_BITS",
    "MAX_BITS",
    "OVERFLOWS",
    "ROUNDINGS",
    "AnyFormat",
    "BlockFormat",
    "ChangedFormat",
    "FloatFormat",
    "Format",
    "ScaleRule",
    "Specials",
    "Stochastic",
    "TableFormat",
    "Ties",
    "changed_digests",
    "check_digests",
    "check_names",
    "code_format",
    "digest",
    "digests_of",
    "float_format",
    "format_digest",
    "from_plain",
    "full_rounding",
    "get_format",
    "get_scalar_format",
    "has_code",
    "is_even",
    "is_plain",
    "log_boundary",
    "no_code",
    "origins_of",
    "origins_recorded",
    "round_scalar",
    "saved",
    "table_format",
    "to_single",
]
