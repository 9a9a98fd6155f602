"""altcore: does training survive in this number format, and if not, where does it break?

The public names below load on first use, so that ``import altcore`` costs nothing and
``altcore --help`` never waits for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from altcore.actions import (
        ChangeRecipe,
        Rollback,
        ScaleLearningRate,
        ShiftFormat,
        SkipStep,
        Stop,
    )
    from altcore.api import train
    from altcore.blocks import BlockFormat
    from altcore.capture import Deferred
    from altcore.config import TrainConfig
    from altcore.errors import AltcoreError, BadInput
    from altcore.formats import Format, code_format, float_format, table_format
    from altcore.hookspecs import hookimpl
    from altcore.numerics.functional import (
        decode,
        encode,
        fake_quantize,
        grid_error,
        neighbours,
        quantize,
        stiffness,
        ulp_distance,
    )
    from altcore.numerics.packing import pack, unpack
    from altcore.registry import get_format
    from altcore.settings import setting
    from altcore.surgery import quantize_model

__version__ = "0.1.0"

_HOME = {
    "AltcoreError": "errors",
    "BadInput": "errors",
    "BlockFormat": "blocks",
    "ChangeRecipe": "actions",
    "Deferred": "capture",
    "Format": "formats",
    "Rollback": "actions",
    "ScaleLearningRate": "actions",
    "ShiftFormat": "actions",
    "SkipStep": "actions",
    "Stop": "actions",
    "TrainConfig": "config",
    "code_format": "formats",
    "decode": "numerics.functional",
    "encode": "numerics.functional",
    "fake_quantize": "numerics.functional",
    "float_format": "formats",
    "get_format": "registry",
    "grid_error": "numerics.functional",
    "hookimpl": "hookspecs",
    "neighbours": "numerics.functional",
    "pack": "numerics.packing",
    "quantize": "numerics.functional",
    "quantize_model": "surgery",
    "setting": "settings",
    "stiffness": "numerics.functional",
    "table_format": "formats",
    "train": "api",
    "ulp_distance": "numerics.functional",
    "unpack": "numerics.packing",
}

__all__ = [
    "AltcoreError",
    "BadInput",
    "BlockFormat",
    "ChangeRecipe",
    "Deferred",
    "Format",
    "Rollback",
    "ScaleLearningRate",
    "ShiftFormat",
    "SkipStep",
    "Stop",
    "TrainConfig",
    "code_format",
    "decode",
    "encode",
    "fake_quantize",
    "float_format",
    "get_format",
    "grid_error",
    "hookimpl",
    "neighbours",
    "pack",
    "quantize",
    "quantize_model",
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
    return getattr(import_module(f"altcore.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
