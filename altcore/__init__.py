"""altcore: does training survive in this number format, and if not, where does it break?

The public names below load on first use, so that ``import altcore`` costs nothing and
``altcore --help`` never waits for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from altcore.answers import compare, explain, read_answer
    from altcore.api import train
    from altcore.checkpoints import CheckpointManager, load_checkpoint, save_checkpoint
    from altcore.config import TrainConfig, load_config, save_config
    from altcore.engine import DeferredErrors, Run, Step
    from altcore.errors import AltcoreError, BadInput
    from altcore.exporting import export, read_export
    from altcore.formats import (
        BlockFormat,
        Format,
        Stochastic,
        code_format,
        float_format,
        get_format,
        table_format,
    )
    from altcore.hooks import (
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
    from altcore.loading import load
    from altcore.numerics import (
        decode,
        encode,
        fake_quantize,
        grid_error,
        neighbours,
        pack,
        quantize,
        stiffness,
        ulp_distance,
        unpack,
    )
    from altcore.quantization import quantize_model

__version__ = "0.1.0"

_HOME = {
    "AltcoreError": "errors",
    "BadInput": "errors",
    "BlockFormat": "formats",
    "ChangeRecipe": "hooks",
    "CheckpointManager": "checkpoints",
    "DeferredErrors": "engine",
    "Format": "formats",
    "NonFinite": "hooks",
    "Rollback": "hooks",
    "Run": "engine",
    "ScaleLearningRate": "hooks",
    "ShiftFormat": "hooks",
    "SkipStep": "hooks",
    "Step": "engine",
    "Stochastic": "formats",
    "Stop": "hooks",
    "TrainConfig": "config",
    "code_format": "formats",
    "compare": "answers",
    "decode": "numerics",
    "encode": "numerics",
    "explain": "answers",
    "export": "exporting",
    "fake_quantize": "numerics",
    "float_format": "formats",
    "get_format": "formats",
    "grid_error": "numerics",
    "hookimpl": "hooks",
    "load": "loading",
    "load_checkpoint": "checkpoints",
    "load_config": "config",
    "neighbours": "numerics",
    "pack": "numerics",
    "quantize": "numerics",
    "quantize_model": "quantization",
    "read_answer": "answers",
    "read_export": "exporting",
    "save_checkpoint": "checkpoints",
    "save_config": "config",
    "setting": "hooks",
    "stiffness": "numerics",
    "table_format": "formats",
    "train": "api",
    "ulp_distance": "numerics",
    "unpack": "numerics",
}

_NEED_TORCH = (
    *("answers", "api", "checkpoints", "engine", "exporting", "loading"),
    *("numerics", "quantization"),
)

__all__ = [
    "AltcoreError",
    "BadInput",
    "BlockFormat",
    "ChangeRecipe",
    "CheckpointManager",
    "DeferredErrors",
    "Format",
    "NonFinite",
    "Rollback",
    "Run",
    "ScaleLearningRate",
    "ShiftFormat",
    "SkipStep",
    "Step",
    "Stochastic",
    "Stop",
    "TrainConfig",
    "code_format",
    "compare",
    "decode",
    "encode",
    "explain",
    "export",
    "fake_quantize",
    "float_format",
    "get_format",
    "grid_error",
    "hookimpl",
    "load",
    "load_checkpoint",
    "load_config",
    "neighbours",
    "pack",
    "quantize",
    "quantize_model",
    "read_answer",
    "read_export",
    "save_checkpoint",
    "save_config",
    "setting",
    "stiffness",
    "table_format",
    "train",
    "ulp_distance",
    "unpack",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'altcore' has no attribute {name!r}")
    if _HOME[name] in _NEED_TORCH:
        from altcore.registry import spare_torch

        spare_torch()
    return getattr(import_module(f"altcore.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
