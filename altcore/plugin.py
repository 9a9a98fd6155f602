"""The face for plugin authors: all that a plugin of any kind may use of altcore.

The names load on first use, so that a distribution of formats needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from altcore.engine import Deferred, Run, StallWindow, Step, Trend, random_state
    from altcore.errors import BadInput, nearest
    from altcore.formats import (
        BlockFormat,
        FloatFormat,
        Format,
        ScaleRule,
        Specials,
        TableFormat,
        Ties,
        code_format,
        float_format,
        get_format,
        round_scalar,
        table_format,
    )
    from altcore.hooks import (
        Action,
        ChangeRecipe,
        NonFinite,
        Rollback,
        ScaleLearningRate,
        ShiftFormat,
        SkipStep,
        Stop,
        hookimpl,
        setting,
    )
    from altcore.numerics import (
        amax,
        compute_dtype,
        count_small,
        follow_flips,
        inner_products,
        interval_width,
        moments,
        nearest_error,
        position,
        round_to_grid,
    )
    from altcore.quantization import WeightGrid
    from altcore.recipes import Cast, Casts, Plan
    from altcore.runs import EVENTS, METRICS, read_lines, summary_of
    from altcore.yaml_files import read_mapping

_HOME = {
    "Action": "altcore.hooks",
    "BadInput": "altcore.errors",
    "BlockFormat": "altcore.formats",
    "Cast": "altcore.recipes",
    "Casts": "altcore.recipes",
    "ChangeRecipe": "altcore.hooks",
    "Deferred": "altcore.engine",
    "EVENTS": "altcore.runs",
    "FloatFormat": "altcore.formats",
    "Format": "altcore.formats",
    "METRICS": "altcore.runs",
    "NonFinite": "altcore.hooks",
    "Plan": "altcore.recipes",
    "Rollback": "altcore.hooks",
    "Run": "altcore.engine",
    "ScaleLearningRate": "altcore.hooks",
    "ScaleRule": "altcore.formats",
    "ShiftFormat": "altcore.hooks",
    "SkipStep": "altcore.hooks",
    "Specials": "altcore.formats",
    "StallWindow": "altcore.engine",
    "Step": "altcore.engine",
    "Stop": "altcore.hooks",
    "TableFormat": "altcore.formats",
    "Ties": "altcore.formats",
    "Trend": "altcore.engine",
    "WeightGrid": "altcore.quantization",
    "amax": "altcore.numerics",
    "code_format": "altcore.formats",
    "compute_dtype": "altcore.numerics",
    "count_small": "altcore.numerics",
    "float_format": "altcore.formats",
    "follow_flips": "altcore.numerics",
    "get_format": "altcore.formats",
    "nearest_error": "altcore.numerics",
    "hookimpl": "altcore.hooks",
    "inner_products": "altcore.numerics",
    "moments": "altcore.numerics",
    "nearest": "altcore.errors",
    "position": "altcore.numerics",
    "random_state": "altcore.engine",
    "read_lines": "altcore.runs",
    "read_mapping": "altcore.yaml_files",
    "round_scalar": "altcore.formats",
    "round_to_grid": "altcore.numerics",
    "setting": "altcore.hooks",
    "interval_width": "altcore.numerics",
    "summary_of": "altcore.runs",
    "table_format": "altcore.formats",
}

__all__ = [
    "EVENTS",
    "METRICS",
    "Action",
    "BadInput",
    "BlockFormat",
    "Cast",
    "Casts",
    "ChangeRecipe",
    "Deferred",
    "FloatFormat",
    "Format",
    "NonFinite",
    "Plan",
    "Rollback",
    "Run",
    "ScaleLearningRate",
    "ScaleRule",
    "ShiftFormat",
    "SkipStep",
    "Specials",
    "StallWindow",
    "Step",
    "Stop",
    "TableFormat",
    "Ties",
    "Trend",
    "WeightGrid",
    "amax",
    "code_format",
    "compute_dtype",
    "count_small",
    "float_format",
    "follow_flips",
    "get_format",
    "hookimpl",
    "inner_products",
    "interval_width",
    "moments",
    "nearest",
    "nearest_error",
    "position",
    "random_state",
    "read_lines",
    "read_mapping",
    "round_scalar",
    "round_to_grid",
    "setting",
    "summary_of",
    "table_format",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'altcore.plugin' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
