"""The face for plugin authors: everything that a plugin of any kind may use of altcore.

docs/plugins.md lists the names by purpose, in the groups below. They load on first use, so that a
distribution of formats needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from altcore.builtin_types import (
        printable,
    )
    from altcore.config import TrainConfig, read_interval
    from altcore.durable import open_to_read
    from altcore.engine import (
        DeferredErrors,
        MeasureTable,
        QuantizedWeight,
        Run,
        StallWindow,
        Step,
        Trend,
        Workload,
        active_quantizers,
        interval_width_of,
        inverse_scale,
        join_moments,
        last_input,
        layer_of,
        mean_and_std,
        moments_without_zeros,
        nan_where_not_finite,
        on_grid,
        quantized_weights,
        random_state,
        set_random_state,
    )
    from altcore.environment import EXECUTOR_PID
    from altcore.errors import (
        BadInput,
        Interrupted,
        nearest,
    )
    from altcore.formats import (
        AnyFormat,
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
        Placing,
        Rollback,
        ScaleLearningRate,
        ShiftFormat,
        SkipStep,
        Stop,
        hookimpl,
        setting,
    )
    from altcore.log import log
    from altcore.numerics import (
        COUNTS,
        Meters,
        Rule,
        amax,
        compute_dtype,
        count_magnitudes,
        count_small,
        follow_flips,
        inner_products,
        interval_width,
        moments,
        nearest_error,
        ordinal,
        round_to_grid,
    )
    from altcore.quantization import (
        MOVES,
        AttentionCall,
        WeightGrid,
    )
    from altcore.recipes import (
        Cast,
        Casts,
        ResolvedRecipe,
        Scaling,
    )
    from altcore.runs import (
        EVENTS,
        METRICS,
        TIMINGS,
        RunRecord,
        altered,
        early_and_late,
        full_summary,
        other_code,
        read_json,
        read_lines,
        read_new_lines,
        read_run,
        read_runs,
        replace_text,
        summary_of,
    )
    from altcore.yaml_files import (
        read_mapping,
    )

_HOME = {
    # The contract: hooks and settings
    "hookimpl": "altcore.hooks",
    "setting": "altcore.hooks",
    # What hooks get
    "Run": "altcore.engine",
    "TrainConfig": "altcore.config",
    "Step": "altcore.engine",
    "Workload": "altcore.engine",
    "NonFinite": "altcore.hooks",
    "WeightGrid": "altcore.quantization",
    "Cast": "altcore.recipes",
    "Casts": "altcore.recipes",
    "ResolvedRecipe": "altcore.recipes",
    "Scaling": "altcore.recipes",
    # What acting hooks return
    "Action": "altcore.hooks",
    "ChangeRecipe": "altcore.hooks",
    "Rollback": "altcore.hooks",
    "ScaleLearningRate": "altcore.hooks",
    "ShiftFormat": "altcore.hooks",
    "SkipStep": "altcore.hooks",
    "Stop": "altcore.hooks",
    # What an executor gets
    "Placing": "altcore.hooks",
    "EXECUTOR_PID": "altcore.environment",
    # Errors: of the user, of a signal, and inside the model
    "BadInput": "altcore.errors",
    "Interrupted": "altcore.errors",
    "nearest": "altcore.errors",
    "DeferredErrors": "altcore.engine",
    # Formats, as data and by name
    "AnyFormat": "altcore.formats",
    "BlockFormat": "altcore.formats",
    "FloatFormat": "altcore.formats",
    "Format": "altcore.formats",
    "ScaleRule": "altcore.formats",
    "Specials": "altcore.formats",
    "TableFormat": "altcore.formats",
    "Ties": "altcore.formats",
    "code_format": "altcore.formats",
    "float_format": "altcore.formats",
    "get_format": "altcore.formats",
    "table_format": "altcore.formats",
    # Rounding: the exact scalar reference, and tensors
    "round_scalar": "altcore.formats",
    "Meters": "altcore.numerics",
    "Rule": "altcore.numerics",
    "compute_dtype": "altcore.numerics",
    "interval_width": "altcore.numerics",
    "nearest_error": "altcore.numerics",
    "ordinal": "altcore.numerics",
    "round_to_grid": "altcore.numerics",
    # Reductions over a tensor, in one pass
    "amax": "altcore.numerics",
    "count_magnitudes": "altcore.numerics",
    "count_small": "altcore.numerics",
    "follow_flips": "altcore.numerics",
    "inner_products": "altcore.numerics",
    "moments": "altcore.numerics",
    # Measuring: quantized weights, operands, statistics
    "COUNTS": "altcore.numerics",
    "MOVES": "altcore.quantization",
    "AttentionCall": "altcore.quantization",
    "MeasureTable": "altcore.engine",
    "QuantizedWeight": "altcore.engine",
    "active_quantizers": "altcore.engine",
    "interval_width_of": "altcore.engine",
    "inverse_scale": "altcore.engine",
    "join_moments": "altcore.engine",
    "last_input": "altcore.engine",
    "layer_of": "altcore.engine",
    "mean_and_std": "altcore.engine",
    "moments_without_zeros": "altcore.engine",
    "nan_where_not_finite": "altcore.engine",
    "on_grid": "altcore.engine",
    "quantized_weights": "altcore.engine",
    # Judging: trends of the loss, and stall
    "StallWindow": "altcore.engine",
    "Trend": "altcore.engine",
    # Findings for the summary
    "early_and_late": "altcore.runs",
    # Random states
    "random_state": "altcore.engine",
    "set_random_state": "altcore.engine",
    # Reading the record of a run
    "RunRecord": "altcore.runs",
    "read_run": "altcore.runs",
    "read_runs": "altcore.runs",
    "full_summary": "altcore.runs",
    "other_code": "altcore.runs",
    "EVENTS": "altcore.runs",
    "METRICS": "altcore.runs",
    "TIMINGS": "altcore.runs",
    "read_json": "altcore.runs",
    "read_lines": "altcore.runs",
    "read_new_lines": "altcore.runs",
    "summary_of": "altcore.runs",
    "altered": "altcore.runs",
    "read_mapping": "altcore.yaml_files",
    "read_interval": "altcore.config",
    # Reading files that a user names
    "open_to_read": "altcore.durable",
    # Telling the user, by lines of the log that never fail
    "log": "altcore.log",
    # Writing reports
    "printable": "altcore.builtin_types",
    "replace_text": "altcore.runs",
}

__all__ = [
    "COUNTS",
    "EVENTS",
    "EXECUTOR_PID",
    "METRICS",
    "MOVES",
    "TIMINGS",
    "Action",
    "AnyFormat",
    "AttentionCall",
    "BadInput",
    "BlockFormat",
    "Cast",
    "Casts",
    "ChangeRecipe",
    "DeferredErrors",
    "FloatFormat",
    "Format",
    "Interrupted",
    "MeasureTable",
    "Meters",
    "NonFinite",
    "Placing",
    "QuantizedWeight",
    "ResolvedRecipe",
    "Rollback",
    "Rule",
    "Run",
    "RunRecord",
    "ScaleLearningRate",
    "ScaleRule",
    "Scaling",
    "ShiftFormat",
    "SkipStep",
    "Specials",
    "StallWindow",
    "Step",
    "Stop",
    "TableFormat",
    "Ties",
    "TrainConfig",
    "Trend",
    "WeightGrid",
    "Workload",
    "active_quantizers",
    "altered",
    "amax",
    "code_format",
    "compute_dtype",
    "count_magnitudes",
    "count_small",
    "early_and_late",
    "float_format",
    "follow_flips",
    "full_summary",
    "get_format",
    "hookimpl",
    "inner_products",
    "interval_width",
    "interval_width_of",
    "inverse_scale",
    "join_moments",
    "last_input",
    "layer_of",
    "log",
    "mean_and_std",
    "moments",
    "moments_without_zeros",
    "nan_where_not_finite",
    "nearest",
    "nearest_error",
    "on_grid",
    "open_to_read",
    "ordinal",
    "other_code",
    "printable",
    "quantized_weights",
    "random_state",
    "read_interval",
    "read_json",
    "read_lines",
    "read_mapping",
    "read_new_lines",
    "read_run",
    "read_runs",
    "replace_text",
    "round_scalar",
    "round_to_grid",
    "set_random_state",
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
